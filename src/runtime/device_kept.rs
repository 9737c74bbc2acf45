//! Tensors that layers keep from step to step: on the GPU, or in the host's memory with a place on the GPU that all layers share.
//!
//! Of those in the host's memory a step loads what it takes when it begins, and stores what it makes at once. Both are copies in a stream of the
//! session's own, beside the launches in its stream: that one waits for the loads where they are first needed, and for all copies at the end
//! of the step. So each step finds the places free, and has all of its copies with it in a recording. On the GPU nothing is copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::memory::{Memory, Slot, staging};
use crate::cuda::{Buffer, Device, Event, HostBuffer, Stream};
use crate::error::Result;

/// A tensor that a layer keeps, of numbers of 16 bits.
#[derive(Debug)]
pub(super) struct KeptTensor {
    /// Where launches have it: its own memory, or the place that it shares.
    place: Arc<Buffer>,
    /// Where it lies, if not there.
    host: Option<HostBuffer>,
}

/// Makes the tensors of layers.
#[derive(Debug)]
pub(super) struct Room {
    device: Arc<Device>,
    /// Those that layers share; none where each tensor has its own.
    places: BTreeMap<Slot, Arc<Buffer>>,
}

/// Copies between the host's memory and the places on the GPU; none where everything lies on the GPU.
#[derive(Debug)]
pub(super) struct Copies(Option<Beside>);

/// A stream of copies beside that of launches.
#[derive(Debug)]
struct Beside {
    stream: Stream,
    forked: Event,
    joined: Event,
    /// Whether it has copies that the stream of launches does not wait for yet.
    is_apart: bool,
}

impl KeptTensor {
    /// Where launches have it.
    pub(super) fn place(&self) -> &Arc<Buffer> {
        &self.place
    }

    fn load(&self, stream: &Stream) -> Result<()> {
        self.host.as_ref().map_or(Ok(()), |host| host.load(stream, &self.place))
    }

    fn store(&self, stream: &Stream) -> Result<()> {
        self.host.as_ref().map_or(Ok(()), |host| host.store(stream, &self.place))
    }
}

impl Room {
    /// For layers with these tensors.
    pub(super) fn new(device: &Arc<Device>, memory: Memory, layers: &[Vec<(Slot, usize)>]) -> Result<Self> {
        let shared = match memory {
            Memory::Gpu => BTreeMap::new(),
            Memory::Host => staging(layers),
        };
        let places = shared.into_iter().map(|(slot, len)| Ok((slot, Arc::new(Buffer::new(device, len * 2)?))));
        Ok(Room { device: Arc::clone(device), places: places.collect::<Result<_>>()? })
    }

    /// A tensor of so many numbers.
    pub(super) fn tensor(&self, slot: Slot, len: usize) -> Result<KeptTensor> {
        Ok(match self.places.get(&slot) {
            Some(place) => KeptTensor { place: Arc::clone(place), host: Some(HostBuffer::new(&self.device, len * 2)?) },
            None => KeptTensor { place: Arc::new(Buffer::new(&self.device, len * 2)?), host: None },
        })
    }
}

impl Copies {
    pub(super) fn new(device: &Arc<Device>, memory: Memory) -> Result<Self> {
        if memory == Memory::Gpu {
            return Ok(Copies(None));
        }
        let [forked, joined] = [Event::untimed(device)?, Event::untimed(device)?];
        Ok(Copies(Some(Beside { stream: Stream::new(device)?, forked, joined, is_apart: false })))
    }

    /// Brings tensors to their places, beside what is launched in the stream until [`Copies::join`].
    pub(super) fn load<'a>(
        &mut self,
        stream: &Stream,
        tensors: impl IntoIterator<Item = &'a KeptTensor>,
    ) -> Result<()> {
        self.copy(stream, tensors, KeptTensor::load)
    }

    /// Brings tensors from their places to where they lie, beside what is launched from now on.
    pub(super) fn store<'a>(
        &mut self,
        stream: &Stream,
        tensors: impl IntoIterator<Item = &'a KeptTensor>,
    ) -> Result<()> {
        self.copy(stream, tensors, KeptTensor::store)
    }

    /// Copies, once what was launched in the stream before is done.
    fn copy<'a>(
        &mut self,
        stream: &Stream,
        tensors: impl IntoIterator<Item = &'a KeptTensor>,
        copy: impl Fn(&KeptTensor, &Stream) -> Result<()>,
    ) -> Result<()> {
        let Some(beside) = &mut self.0 else { return Ok(()) };
        let mut tensors = tensors.into_iter().peekable();
        if tensors.peek().is_none() {
            return Ok(());
        }
        beside.forked.record(stream)?;
        beside.forked.hold(&beside.stream)?;
        beside.is_apart = true;
        tensors.try_for_each(|tensor| copy(tensor, &beside.stream))
    }

    /// Lets what is launched from now on wait for all copies.
    pub(super) fn join(&mut self, stream: &Stream) -> Result<()> {
        // NOTE: a recording refuses to wait for a stream that it has not forked.
        let Some(beside) = self.0.as_mut().filter(|beside| beside.is_apart) else { return Ok(()) };
        beside.joined.record(&beside.stream)?;
        beside.joined.hold(stream)?;
        beside.is_apart = false;
        Ok(())
    }
}

//! What the tests of GPU kernels share.

// Each test takes what it needs.
#![allow(dead_code, unused_imports)]

pub mod attention;
pub mod block;
pub mod gemm;
pub mod numbers;
mod random;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flashomni::cuda::{Device, Stream};
use flashomni::env;
use flashomni::kernels::Kernels;

pub use random::Random;

/// The kernels of the first GPU.
pub struct Gpu {
    pub kernels: Arc<Kernels>,
    pub stream: Stream,
}

/// Tests that had no GPU.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Runs a test on the GPU, one at a time; says so where it cannot.
pub fn on_gpu(test: impl FnOnce(&Gpu, &mut Random)) {
    static GPU: OnceLock<Result<Mutex<Gpu>, String>> = OnceLock::new();
    let open = || -> flashomni::Result<Gpu> {
        let device = Device::open(0)?;
        Ok(Gpu { kernels: Arc::new(Kernels::new(&device)?), stream: Stream::new(&device)? })
    };
    match GPU.get_or_init(|| open().map(Mutex::new).map_err(|error| error.to_string())) {
        Ok(gpu) => {
            let gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            let mut random = Random::fresh();
            println!("{} from {}={}", gpu.kernels.device(), env::SEED.name, random.seed());
            test(&gpu, &mut random);
        }
        Err(error) => {
            let is_required = std::env::var_os(env::REQUIRE_GPU.name).is_some_and(|value| value == "1");
            assert!(!is_required, "{error}");
            let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
            // Past the capture of passing tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED: test {count} of a GPU did not run: {error}");
        }
    }
}

//! Embedding, the small way: a host keeps its transformer and hands attention to a session.
//!
//! Runs the FlashOmni strategy over ten recorded steps of a trained transformer, and compares each output with dense
//! attention. `cargo run --release --example embed_attention`

use flashomni::Compiler;
use flashomni::cpu::dense_attention;
use flashomni::runtime::Session;
use flashomni::tensor::{Tensor, TensorRef};
use flashomni::tensor_file::TensorFile;

/// The recorded layer.
const LAYER: u32 = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));

    // A strategy, the model it runs on, and a parameter of its own.
    let compiled = Compiler::from_file(&root.join("examples/strategies/flashomni.omni"))?
        .strategy("flashomni")
        .model("minidit_64")
        .param("tau_kv", "0.3")
        .compile()?;
    let mut session = Session::new(compiled.plan)?;

    let recording = TensorFile::open(root.join("data/minidit/qkv_64_layer3.safetensors"))?;
    for step in 4..14 {
        let [q, k, v] = ["q", "k", "v"].map(|name| recording.get(&format!("{name}.step{step}")));
        let (q, k, v) = (q?, k?, v?);
        let mut out = Tensor::zeros(q.shape(), q.dtype());

        // What a host writes where it called attention before.
        let report = session.attention(step, LAYER, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())?;

        let error = relative_error(out.as_ref(), dense(&q, &k, &v)?.as_ref());
        println!("step {step:2}  {:8}  error {error:.1e}", format!("{:?}", report.kind).to_lowercase());
    }
    Ok(())
}

fn dense(q: &Tensor, k: &Tensor, v: &Tensor) -> flashomni::Result<Tensor> {
    let mut out = Tensor::zeros(q.shape(), q.dtype());
    dense_attention(q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())?;
    Ok(out)
}

/// Relative Frobenius error.
fn relative_error(found: TensorRef<'_>, wanted: TensorRef<'_>) -> f32 {
    let (found, wanted) = (found.to_f32(), wanted.to_f32());
    let error: f32 = found.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / wanted.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

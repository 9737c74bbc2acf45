//! `omni sample`: an image of the hosted transformer under a strategy, beside the one that computes everything.

use flashomni::files::write_atomic;
use flashomni::minidit::Watch;

use crate::args::{Choice, Sample};
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::generate::{self, Compared, Line, Quality, Setup};
use crate::input;
use crate::picture::sheet::{Row, Sheet};
use crate::record::Recorder;

/// Pixels of the picture, along one side, for one of an image.
const SCALE: usize = 3;

/// Makes the images.
pub fn sample(args: &Sample, console: &Console) -> Result<Exit, Failure> {
    generate::check_png(&args.output)?;
    let setup = Setup::open(&args.host)?;
    let class = setup.model.class(&args.prompt)?;
    let choice = Choice {
        strategy: args.strategy.clone(),
        param: args.param.clone(),
        inputs: args.inputs.clone(),
        ..Choice::default()
    };
    let compile = |file| setup.compile(input::compiler(file, None, input::read(file)?, &choice)?, console);
    let sparsity = args.file.as_deref().map(compile).transpose()?;
    let mut recorder = args.record.as_ref().map(|path| Recorder::new(path, args, &setup)).transpose()?;
    let images = 1 + usize::from(sparsity.is_some());
    let mut progress = console.progress(images * setup.steps as usize);
    // What is recorded is what the strategy sees, where there is one.
    let mut nobody = ();
    let (mut of_dense, mut of_sparse): (&mut dyn Watch, &mut dyn Watch) = (&mut nobody, &mut ());
    if let Some(recorder) = &mut recorder {
        *(if sparsity.is_some() { &mut of_sparse } else { &mut of_dense }) = recorder;
    }
    let dense = setup.generate(class, args.seed, None, of_dense, (&mut progress, "dense"))?;
    let mut images = vec![dense.image.as_slice()];
    let mut lines = vec![Line::reference(&[&dense.measures])];
    let mut columns = vec![format!("dense, {}", lines[0].caption())];
    let sparse = match &sparsity {
        Some(sparsity) => {
            let name = &sparsity.plan().strategy;
            let sparse = setup.generate(class, args.seed, Some(sparsity), of_sparse, (&mut progress, name))?;
            let quality = Quality::of(&sparse, &dense, setup.size);
            let compared = Compared { own: &sparse.measures, dense: &dense.measures, quality: &quality };
            let line = Line::new(name.clone(), &[compared]);
            columns.push(format!("{name}, {}", line.caption()));
            lines.push(line);
            Some(sparse)
        }
        None => None,
    };
    drop(progress);
    images.extend(sparse.as_ref().map(|sparse| sparse.image.as_slice()));
    let title = format!("{}, seed {}: {}", args.prompt, args.seed, setup.describe());
    let sheet = Sheet {
        title: &title,
        columns: columns.iter().map(String::as_str).collect(),
        rows: vec![Row { name: "", caption: "", images }],
        side: setup.size,
        scale: SCALE,
    };
    let bytes = sheet.png()?;
    write_atomic(&args.output, |out| out.write_all(&bytes))?;
    console.print(&format!("  {title}\n\n{}", generate::render(&lines)))?;
    console.note(format_args!("wrote {}", args.output.display()));
    if let Some(recorder) = recorder {
        recorder.write(&title, sparsity.as_ref())?;
        console.note(format_args!("recorded {}", args.record.as_deref().unwrap_or("".as_ref()).display()));
    }
    Ok(Exit::Fine)
}

use flashomni::Compiler;
#[test]
fn smoke() {
    for f in std::fs::read_dir("examples").unwrap() {
        let p = f.unwrap().path();
        if p.extension().is_none_or(|e| e != "omni") {
            continue;
        }
        let c = Compiler::from_file(&p).unwrap();
        let t = std::time::Instant::now();
        match c.compile() {
            Ok(c) => {
                println!(
                    "OK {} {} model {} classes {} masks {} programs {} {:?}",
                    p.display(),
                    c.plan.strategy,
                    c.plan.model.name,
                    c.plan.classes.len(),
                    c.plan.masks.len(),
                    c.plan.programs.len(),
                    t.elapsed()
                );
                for m in &c.plan.masks {
                    print!(" {}x{}:{:.3}", m.rows(), m.columns(), m.count() as f64 / (m.rows() * m.columns()) as f64);
                }
                println!();
                if !c.warnings.list.is_empty() {
                    println!("{}", flashomni::diagnostics::render::text(&c.warnings, false));
                }
            }
            Err(e) => println!("ERR {} {}", p.display(), e),
        }
    }
}

//! From files to a plan: the front door of the compiler.
//!
//! A [`Compiler`] reads a strategy and what it imports, chooses the model, and runs every stage. It is the only part of
//! the compiler that reads files. Diagnostics of all stages come back together with the texts they point into.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check::{self, Declarations, InputTensor, ReadFile};
use crate::diagnostics::{Code, Diagnostic, Diagnostics, MAX_FINDINGS, Severity, did_you_mean, near_or_all};
use crate::error::{Error, Result};
use crate::ir::{Model, Strategy};
use crate::passes;
use crate::plan::Plan;
use crate::source::{Sources, Span};
use crate::syntax::{self, ast};

/// Files of one compilation at most.
const MAX_FILES: usize = 256;
/// Bytes of a line on each side of a mistake that are looked at for what follows from it.
const NEAR: usize = 4096;
/// Bytes of a table at most.
const MAX_TABLE_BYTES: u64 = 256 << 20;

/// The shipped models: name of the file and its text.
pub const MODEL_FILES: &[(&str, &str)] = &[
    ("flux.omni", include_str!("../models/flux.omni")),
    ("hunyuan_video.omni", include_str!("../models/hunyuan_video.omni")),
    ("wan.omni", include_str!("../models/wan.omni")),
    ("cogvideox.omni", include_str!("../models/cogvideox.omni")),
    ("others.omni", include_str!("../models/others.omni")),
];

/// Compiles a strategy.
///
/// # Errors
/// [`Error::Compile`] with every diagnostic when the strategy is wrong or does not fit its model.
///
/// # Examples
/// ```
/// let plan = flashomni::compile(
///     r#"
///     model small { layers 2 heads 4 head_dim 64 steps 8 tokens text(64) ++ image(h = 16, w = 16) }
///     strategy window {
///         layout text ++ image(h, w)
///         block 64
///         keep text <-> all
///         keep image -> image where abs(h(q) - h(k)) <= 4
///     }
///     "#,
/// )?;
/// assert_eq!(plan.model.tokens(), 320);
/// # Ok::<(), flashomni::Error>(())
/// ```
pub fn compile(source: &str) -> Result<Plan> {
    Compiler::from_source("<source>", source).compile().map(|compiled| compiled.plan)
}

/// What a compilation gives.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// Warnings.
    pub warnings: Diagnostics,
}

/// A compilation: where the strategy comes from, and what the caller chooses.
#[derive(Clone, Debug)]
pub struct Compiler {
    name: String,
    bytes: std::result::Result<Vec<u8>, String>,
    directory: Option<PathBuf>,
    strategy: Option<String>,
    model: Option<String>,
    params: Vec<(String, String)>,
    shape: Vec<(String, String)>,
    inputs: HashMap<String, InputTensor>,
}

impl Compiler {
    /// Compiles a text. Imports and tables are looked up in the current directory.
    pub fn from_source(name: impl Into<String>, source: impl Into<Vec<u8>>) -> Self {
        Compiler {
            name: name.into(),
            bytes: Ok(source.into()),
            directory: Some(PathBuf::from(".")),
            strategy: None,
            model: None,
            params: Vec::new(),
            shape: Vec::new(),
            inputs: HashMap::new(),
        }
    }

    /// Compiles a file. Imports and tables are looked up beside it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read. One of more than 16 MiB is read no further, and refused by the compilation.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(syntax::MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        let mut compiler = Compiler::from_source(path.display().to_string(), bytes);
        compiler.directory = path.parent().map(Path::to_owned);
        Ok(compiler)
    }

    /// Looks imports and tables up in this directory.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// Chooses a strategy of the file by name; without, the last one is compiled.
    #[must_use]
    pub fn strategy(mut self, name: impl Into<String>) -> Self {
        self.strategy = Some(name.into());
        self
    }

    /// Chooses the model by name, among those of the file and its imports and the shipped ones. Without, the last model
    /// of the file is taken, and else [`DEFAULT_MODELS`] are tried.
    #[must_use]
    pub fn model(mut self, name: impl Into<String>) -> Self {
        self.model = Some(name.into());
        self
    }

    /// Gives a parameter a value, an expression of the language.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.params.push((name.into(), value.into()));
        self
    }

    /// Changes a size of the model: `layers`, `heads`, `head_dim`, `steps`, `dtype`, a segment (`text`: tokens),
    /// its axes (`video.t`, or `t` alone) or its valid tokens (`text.valid`).
    #[must_use]
    pub fn shape(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.shape.push((name.into(), value.into()));
        self
    }

    /// Gives the numbers of an `input(...)` of the strategy.
    #[must_use]
    pub fn input(mut self, name: impl Into<String>, tensor: InputTensor) -> Self {
        self.inputs.insert(name.into(), tensor);
        self
    }

    /// Runs every stage.
    ///
    /// # Errors
    /// [`Error::Compile`] with every diagnostic.
    pub fn compile(&self) -> Result<Compiled> {
        self.compile_with(&mut |_, _| {})
    }

    /// Runs every stage; `after` sees the IR after `check` and after each pass that leaves one.
    ///
    /// # Errors
    /// [`Error::Compile`] with every diagnostic.
    pub fn compile_with(&self, after: &mut dyn FnMut(&'static str, &Strategy)) -> Result<Compiled> {
        let mut loaded = self.load();
        let checked = self.check_loaded(&mut loaded);
        let model = self.choose_model(&mut loaded, checked.as_ref());
        let (Some(strategy), Some(model)) = (checked, model) else {
            return Err(loaded.failure());
        };
        if loaded.failed() {
            return Err(loaded.failure());
        }
        after("check", &strategy);
        match passes::run(strategy, &model, after) {
            Ok((plan, warnings)) => {
                loaded.findings.extend(warnings);
                let warnings = Diagnostics::new(Arc::new(loaded.sources), loaded.findings);
                Ok(Compiled { plan, warnings })
            }
            Err(errors) => {
                loaded.findings.extend(errors);
                Err(loaded.failure())
            }
        }
    }

    /// The findings of all stages, warnings included; without a model to bind to, of those that need none. Every strategy
    /// of the file is checked.
    #[must_use]
    pub fn check(&self) -> Diagnostics {
        let mut loaded = self.load();
        let names: Vec<String> = match &self.strategy {
            Some(name) => vec![name.clone()],
            None => loaded.own_strategies(),
        };
        let is_chosen = self.model.is_some() || loaded.has_own_model() || !self.shape.is_empty();
        let model = if is_chosen { self.choose_model(&mut loaded, None) } else { None };
        let is_empty = loaded.files.get(loaded.main).is_some_and(|file| file.items.is_empty());
        if is_empty && self.strategy.is_none() && !loaded.failed() {
            loaded.no_strategy();
        }
        let mut pairs_left = passes::specialise::QUICK_PAIRS;
        for name in names {
            let one = self.clone().strategy(name);
            let Some(strategy) = one.check_loaded(&mut loaded) else { continue };
            let model = match &model {
                Some(model) => Some(model.clone()),
                // What is wrong with the model that was chosen has been said; it is no reason to look at another.
                None if is_chosen => None,
                None => loaded.default_model(&strategy),
            };
            let Some(model) = model else { continue };
            if loaded.failed() {
                // Not all rules are known: what they leave is not known either.
                pairs_left = 0;
            }
            let (Ok(findings) | Err(findings)) = passes::check(strategy, &model, &mut pairs_left);
            loaded.findings.extend(findings);
        }
        for model in loaded.own_models() {
            let (_, findings) = check::model::check_model(&model);
            loaded.findings.extend(findings);
        }
        Diagnostics::new(Arc::new(loaded.sources), loaded.findings)
    }

    /// The model that the strategy would be compiled for.
    ///
    /// # Errors
    /// [`Error::Compile`] with every diagnostic.
    pub fn bound_model(&self) -> Result<Model> {
        let mut loaded = self.load();
        let checked = self.check_loaded(&mut loaded);
        match self.choose_model(&mut loaded, checked.as_ref()) {
            Some(model) if !loaded.failed() => Ok(model),
            _ => Err(loaded.failure()),
        }
    }

    /// The models that the file and its imports declare, as far as they are right, in order.
    #[must_use]
    pub fn own_models(&self) -> Vec<Model> {
        let models = self.load().own_models();
        models.iter().filter_map(|model| check::model::check_model(model).0).collect()
    }

    /// The syntax tree of the file itself.
    ///
    /// # Errors
    /// [`Error::Compile`] with the syntax errors.
    pub fn syntax(&self) -> Result<ast::File> {
        let mut loaded = self.load();
        if loaded.failed() || loaded.files.is_empty() {
            return Err(loaded.failure());
        }
        Ok(loaded.files.swap_remove(loaded.main))
    }

    fn load(&self) -> Loaded {
        let mut loaded = Loaded { inputs: self.inputs.clone(), ..Loaded::default() };
        loaded.ship_models();
        loaded.main = loaded.files.len();
        match &self.bytes {
            Ok(bytes) => {
                let mut chain: Vec<PathBuf> = Path::new(&self.name).canonicalize().into_iter().collect();
                loaded.paths.extend(chain.iter().cloned());
                loaded.add(&self.name, bytes, self.directory.clone(), &mut chain);
            }
            Err(reason) => loaded.problem(Code::E0106, &self.name, reason),
        }
        loaded
    }

    fn check_loaded(&self, loaded: &mut Loaded) -> Option<Strategy> {
        let files = loaded.files.clone();
        let mut findings = Vec::new();
        let mut declarations = Declarations::collect(&files, &mut findings);
        declarations.is_incomplete = loaded.has_broken_import();
        let own = loaded.own_strategies();
        let name = match &self.strategy {
            Some(name) => name.clone(),
            None => match own.last() {
                Some(name) => name.clone(),
                None => {
                    if !loaded.failed() {
                        loaded.no_strategy();
                    }
                    return None;
                }
            },
        };
        let Some(strategy) = declarations.strategies.get(name.as_str()) else {
            // What cannot be read may declare it.
            if !loaded.failed() {
                let mut known: Vec<&str> = declarations.strategies.keys().copied().collect();
                known.sort_unstable();
                let near = near_or_all(&name, &known);
                loaded.problem(Code::E0201, &self.name, &format!("there is no strategy `{name}`{near}"));
            }
            return None;
        };
        let params = self.parse_params(loaded);
        let (checked, more) = check::check(&declarations, &*loaded, strategy, &params);
        findings.extend(more.into_iter().filter(|finding| !loaded.follows_from_syntax(finding)));
        loaded.report(findings);
        checked
    }

    /// The parameters as expressions; each becomes a source of its own, so that messages can point into it.
    fn parse_params(&self, loaded: &mut Loaded) -> Vec<(ast::Ident, ast::Expr)> {
        let mut params = Vec::new();
        for (name, value) in &self.params {
            let text = format!("{name} = {value}");
            let file = loaded.sources.add(format!("<parameter {name}>"), text.clone());
            if let Some(directory) = &self.directory {
                loaded.directories.insert(file, directory.clone());
            }
            let (param, findings) = syntax::parse_param(file, &text);
            loaded.report(findings);
            params.extend(param);
        }
        params
    }

    /// The model that the sizes given make on their own: they give every size of the strategy's layout, or of one without a
    /// layout the `tokens`. What else is not given is small.
    fn model_of_shape(&self, loaded: &mut Loaded, strategy: &Strategy) -> Option<Model> {
        let given =
            |name: &str| self.shape.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let mut used = vec!["dtype".to_owned()];
        let mut take = |name: String| {
            let value = given(&name)?.to_owned();
            used.push(name);
            Some(value)
        };
        let mut segments = Vec::new();
        for segment in &strategy.layout {
            let mut args = Vec::new();
            for axis in &segment.axes {
                let size = take(format!("{}.{axis}", segment.name)).or_else(|| take(axis.clone()))?;
                args.push(format!("{axis} = {size}"));
            }
            if segment.axes.is_empty() {
                args.push(take(segment.name.clone())?);
            }
            args.extend(take(format!("{}.valid", segment.name)).map(|valid| format!("valid = {valid}")));
            let name = match segment.name.as_str() {
                "vision" if segment.axes.iter().any(|axis| axis == "t") => "video",
                "vision" => "image",
                name => name,
            };
            segments.push(format!("{name}({})", args.join(", ")));
        }
        if segments.is_empty() {
            segments.push(format!("sequence({})", take("tokens".to_owned())?));
        }
        let mut counts = String::new();
        for (name, default) in [("layers", "1"), ("heads", "1"), ("head_dim", "64"), ("steps", "1")] {
            counts += &format!("{name} {} ", take(name.to_owned()).unwrap_or(default.to_owned()));
        }
        // What is no size of this model is one of another.
        if self.shape.iter().any(|(name, _)| !used.contains(name)) {
            return None;
        }
        let dtype = given("dtype").unwrap_or("f32");
        let text = format!("model shape {{ {counts}dtype {dtype} tokens {} }}", segments.join(" ++ "));
        let file = loaded.sources.add("<shape>", text.clone());
        let (tree, mut findings) = syntax::parse(file, &text);
        let model = tree.items.into_iter().find_map(|item| match item {
            ast::Item::Model(model) => Some(model),
            _ => None,
        })?;
        let (model, more) = check::model::check_model(&model);
        findings.extend(more);
        loaded.report(findings);
        model
    }

    fn choose_model(&self, loaded: &mut Loaded, strategy: Option<&Strategy>) -> Option<Model> {
        if self.model.is_none()
            && !self.shape.is_empty()
            && let Some(model) = strategy.and_then(|strategy| self.model_of_shape(loaded, strategy))
        {
            return Some(model);
        }
        let models = loaded.models();
        let found = match &self.model {
            Some(name) => models.iter().rev().find(|model| model.name.node == *name).cloned(),
            None => loaded.own_models().pop().or_else(|| {
                let strategy = self.strategy.clone().or_else(|| loaded.own_strategies().pop())?;
                loaded.default_model_for(&strategy)
            }),
        };
        let Some(mut model) = found else {
            let message = match &self.model {
                Some(name) => {
                    let mut known: Vec<&str> = models.iter().map(|model| model.name.node.as_str()).collect();
                    known.sort_unstable();
                    let near = near_or_all(name, &known);
                    format!("there is no model `{name}`{near}")
                }
                None => "no shipped model has the segments of this strategy; declare one with `model`".to_owned(),
            };
            if !loaded.failed() {
                loaded.problem(Code::E0302, &self.name, &message);
            }
            return None;
        };
        for (name, value) in &self.shape {
            if let Err(message) = reshape(&mut model, name, value) {
                loaded.problem(Code::E0308, &self.name, &message);
                return None;
            }
        }
        let (shape, findings) = check::model::check_model(&model);
        loaded.report(findings);
        shape
    }
}

/// Models that are tried, in order, for a strategy that names none.
pub const DEFAULT_MODELS: &[&str] = &["minidit_128", "wan21_1b_480p", "hunyuan_video_480p"];

/// The shapes of all shipped models.
#[must_use]
pub fn shipped_models() -> Vec<(Model, Vec<String>)> {
    let mut loaded = Loaded::default();
    loaded.ship_models();
    loaded
        .models()
        .into_iter()
        .filter_map(|model| {
            let docs = model.docs.clone();
            Some((check::model::check_model(&model).0?, docs))
        })
        .collect()
}

/// Changes a size of a model's tree.
fn reshape(model: &mut ast::Model, name: &str, value: &str) -> std::result::Result<(), String> {
    let number = || -> std::result::Result<ast::ExprKind, String> {
        value.parse().map(ast::ExprKind::Int).map_err(|_| format!("shape `{name}={value}`: expected an integer"))
    };
    let (first, second) = name.split_once('.').map_or((name, None), |(first, second)| (first, Some(second)));
    let mut known = vec!["dtype".to_owned()];
    for field in &mut model.fields {
        match field {
            ast::ModelField::Count(field, expr) => {
                if field.node == name {
                    expr.kind = number()?;
                    return Ok(());
                }
                known.push(field.node.clone());
            }
            ast::ModelField::Dtype(dtype) => {
                if name == "dtype" {
                    value.clone_into(&mut dtype.node);
                    return Ok(());
                }
            }
            ast::ModelField::Tokens(segments, _) => {
                for segment in segments {
                    let named = segment.name.node == first;
                    for arg in &mut segment.args {
                        let axis = arg.name.as_ref().map(|name| name.node.clone());
                        let hit = match (&axis, second) {
                            (None, None) => named,
                            (Some(axis), Some(second)) => named && axis == second,
                            (Some(axis), None) => axis == name,
                            (None, Some(_)) => false,
                        };
                        if hit {
                            arg.value.kind = number()?;
                            return Ok(());
                        }
                        known.push(
                            axis.map_or_else(
                                || segment.name.node.clone(),
                                |axis| format!("{}.{axis}", segment.name.node),
                            ),
                        );
                    }
                    if named && second == Some("valid") {
                        let span = segment.span;
                        let name = ast::Ident { node: "valid".to_owned(), span };
                        let value = ast::Expr { kind: number()?, span };
                        segment.args.push(ast::Arg { name: Some(name), value });
                        return Ok(());
                    }
                }
            }
        }
    }
    let near = did_you_mean(name, known.iter().map(String::as_str));
    let near =
        near.map_or_else(|| format!(": it has {}", known.join(", ")), |near| format!(", did you mean `{near}`?"));
    Err(format!("model `{}` has no size `{name}`{near}", model.name.node))
}

/// All files of a compilation.
#[derive(Default)]
struct Loaded {
    sources: Sources,
    files: Vec<ast::File>,
    /// Index of the file that is compiled; those before it are shipped.
    main: usize,
    directories: HashMap<u16, PathBuf>,
    inputs: HashMap<String, InputTensor>,
    /// Canonical paths that are loaded.
    paths: HashSet<PathBuf>,
    findings: Vec<Diagnostic>,
}

impl Loaded {
    fn ship_models(&mut self) {
        for (name, text) in MODEL_FILES {
            let file = self.sources.add(format!("<models>/{name}"), *text);
            let (tree, findings) = syntax::parse(file, text);
            self.files.push(tree);
            self.findings.extend(findings);
        }
    }

    fn report(&mut self, findings: Vec<Diagnostic>) {
        for finding in findings {
            // Many are compared later, when they are sorted.
            if self.findings.len() > MAX_FINDINGS || !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    /// A finding that no text shows the place of.
    fn problem(&mut self, code: Code, name: &str, message: &str) {
        let file = match self.sources.files().iter().position(|file| file.name == name) {
            Some(index) => index as u16,
            None => self.sources.add(name, ""),
        };
        self.findings.push(Diagnostic::new(code, Span { file, start: 0, end: 0 }, message));
    }

    fn no_strategy(&mut self) {
        let name = self.sources.files().get(self.main).map_or_else(String::new, |file| file.name.clone());
        self.problem(Code::E0201, &name, "the file declares no strategy");
    }

    /// Whether some import is missing or was not understood, which was reported.
    fn has_broken_import(&self) -> bool {
        let unread = [Code::E0101, Code::E0102, Code::E0103, Code::E0104, Code::E0105, Code::E0106, Code::E0107];
        self.findings.iter().filter(|found| unread.contains(&found.code)).any(|found| {
            let file = usize::from(found.span().file);
            let is_import = file != self.main && file < self.files.len();
            is_import || matches!(found.code, Code::E0106 | Code::E0107)
        })
    }

    fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity() == Severity::Error)
    }

    /// Whether a finding is likely no mistake of its own: it stands in a line that could not be read, or is about a name
    /// that such a line declares or uses.
    fn follows_from_syntax(&self, finding: &Diagnostic) -> bool {
        let unread = [Code::E0101, Code::E0102, Code::E0103, Code::E0104];
        let place = finding.span();
        let about_name = matches!(finding.code, Code::E0201 | Code::W0501).then(|| self.sources.text(place));
        let errors = self.findings.iter().filter(|error| unread.contains(&error.code));
        errors.filter(|error| error.span().file == place.file).any(|error| {
            let Some((start, line)) = self.line(error.span()) else { return false };
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            // Whether a `rest` is alone is not known where a guard could not be read.
            finding.code == Code::W0504
                || (start..=start + line.len()).contains(&(place.start as usize))
                || about_name.is_some_and(|name| words.any(|word| word == name))
        })
    }

    /// The line in which a place begins, as far as it is near, and where that part begins.
    fn line(&self, place: Span) -> Option<(usize, &str)> {
        let text = &self.sources.file(place.file)?.text;
        let (before, _) = text.split_at_checked(place.start as usize)?;
        let boundary = |mut at: usize| {
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let first = boundary(before.len().saturating_sub(NEAR));
        let last = boundary(text.len().min(before.len() + NEAR));
        let start = before[first..].rfind('\n').map_or(first, |end| first + end + 1);
        let end = text[before.len()..last].find('\n').map_or(last, |end| before.len() + end);
        Some((start, &text[start..end]))
    }

    fn failure(&mut self) -> Error {
        let sources = std::mem::take(&mut self.sources);
        Error::Compile(Diagnostics::new(Arc::new(sources), std::mem::take(&mut self.findings)))
    }

    fn add(&mut self, name: &str, bytes: &[u8], directory: Option<PathBuf>, chain: &mut Vec<PathBuf>) {
        let next = u16::try_from(self.sources.files().len()).unwrap_or(u16::MAX);
        let (text, finding) = match syntax::decode(next, name, bytes) {
            Ok(text) => (text, None),
            Err(finding) => (String::new(), Some(*finding)),
        };
        let file = self.sources.add(name, text.clone());
        self.findings.extend(finding);
        if let Some(directory) = &directory {
            self.directories.insert(file, directory.clone());
        }
        let (tree, findings) = syntax::parse(file, &text);
        self.findings.extend(findings);
        let imports: Vec<(String, Span)> = tree
            .items
            .iter()
            .filter_map(|item| match item {
                ast::Item::Import(path) => Some((path.node.clone(), path.span)),
                _ => None,
            })
            .collect();
        self.files.push(tree);
        for (path, span) in imports {
            self.import(file, &path, span, chain);
        }
    }

    fn import(&mut self, from: u16, path: &str, span: Span, chain: &mut Vec<PathBuf>) {
        let Some(directory) = self.directories.get(&from).cloned() else {
            let message = format!("cannot import `{path}`: this text has no directory");
            return self.findings.push(Diagnostic::new(Code::E0106, span, message));
        };
        let joined = directory.join(path);
        let canonical = match joined.canonicalize() {
            Ok(canonical) => canonical,
            Err(error) => {
                let message = format!("cannot import `{}`: {}", joined.display(), io_words(&error));
                return self.findings.push(
                    Diagnostic::new(Code::E0106, span, message).help("paths are relative to the file that imports"),
                );
            }
        };
        if let Some(first) = chain.iter().position(|earlier| *earlier == canonical) {
            let names: Vec<String> = chain[first..].iter().chain([&canonical]).map(|path| file_name(path)).collect();
            let message = match names.as_slice() {
                [name, _] => format!("`{name}` imports itself"),
                _ => format!("imports form a circle: `{}`", names.join("` imports `")),
            };
            return self
                .findings
                .push(Diagnostic::new(Code::E0107, span, message).help("move what both need into a third file"));
        }
        if self.paths.contains(&canonical) {
            return;
        }
        if self.sources.files().len() >= MAX_FILES {
            let message = format!("more than {MAX_FILES} files");
            return self.findings.push(Diagnostic::new(Code::E0309, span, message));
        }
        let bytes = match read_limited(&joined, syntax::MAX_BYTES as u64) {
            Ok(bytes) => bytes,
            Err(reason) => {
                let message = format!("cannot import `{}`: {reason}", joined.display());
                return self.findings.push(Diagnostic::new(Code::E0106, span, message));
            }
        };
        self.paths.insert(canonical.clone());
        chain.push(canonical);
        let parent = joined.parent().map(Path::to_owned);
        self.add(&joined.display().to_string(), &bytes, parent, chain);
        chain.pop();
    }

    fn own_strategies(&self) -> Vec<String> {
        let items = self.files.get(self.main).map(|file| file.items.as_slice()).unwrap_or_default();
        items
            .iter()
            .filter_map(|item| match item {
                ast::Item::Strategy(strategy) => Some(strategy.name.node.clone()),
                _ => None,
            })
            .collect()
    }

    fn models(&self) -> Vec<ast::Model> {
        let items = self.files.iter().flat_map(|file| &file.items);
        items
            .filter_map(|item| match item {
                ast::Item::Model(model) => Some(model.clone()),
                _ => None,
            })
            .collect()
    }

    /// Models of the file and what it imports.
    fn own_models(&self) -> Vec<ast::Model> {
        let items = self.files.get(self.main..).unwrap_or_default().iter().flat_map(|file| &file.items);
        items
            .filter_map(|item| match item {
                ast::Item::Model(model) => Some(model.clone()),
                _ => None,
            })
            .collect()
    }

    fn has_own_model(&self) -> bool {
        !self.own_models().is_empty()
    }

    /// The first default model that has a checked strategy's segments.
    fn default_model(&self, strategy: &Strategy) -> Option<Model> {
        let fits = |model: &Model| {
            strategy.layout.iter().all(|wanted| {
                model.segment(&wanted.name).is_some_and(|segment| {
                    wanted.axes.iter().all(|axis| segment.axes.iter().any(|(known, _)| known == axis))
                })
            })
        };
        self.default_candidates().into_iter().filter_map(|model| check::model::check_model(&model).0).find(fits)
    }

    fn default_model_for(&self, strategy: &str) -> Option<ast::Model> {
        let mut findings = Vec::new();
        let declarations = Declarations::collect(&self.files, &mut findings);
        let tree = declarations.strategies.get(strategy)?;
        let (checked, _) = check::check(&declarations, self, tree, &[]);
        let model = self.default_model(&checked?)?;
        self.default_candidates().into_iter().find(|candidate| candidate.name.node == model.name)
    }

    /// The default models first, then all shipped ones.
    fn default_candidates(&self) -> Vec<ast::Model> {
        let models = self.models();
        let first = DEFAULT_MODELS.iter().filter_map(|name| models.iter().find(|model| model.name.node == *name));
        first.chain(models.iter()).cloned().collect()
    }
}

impl ReadFile for Loaded {
    fn read(&self, from: u16, path: &str) -> std::result::Result<Vec<u8>, String> {
        let directory = self.directories.get(&from).ok_or("this text has no directory to look in")?;
        read_limited(&directory.join(path), MAX_TABLE_BYTES)
    }

    fn input(&self, name: &str) -> Option<&InputTensor> {
        self.inputs.get(name)
    }
}

fn read_limited(path: &Path, most: u64) -> std::result::Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| io_words(&error))?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > most {
        return Err(format!("has {} bytes, at most {most}", metadata.len()));
    }
    std::fs::read(path).map_err(|error| io_words(&error))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What the system says, without the number of the error.
fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

//! From syntax tree to IR: names, kinds, shapes, units and ranges that need no model.
//!
//! Elaboration walks the statements once, with a stack of scopes for names and a guard that grows with nesting. What
//! has no meaning becomes a diagnostic and a hole; a hole silences everything that depends on it, so that one
//! mistake is reported once, and checking goes on. Parameters are bound here: a parameter is a `let` whose
//! value the caller may replace. Tuples exist only here; the IR sees their components.
//!
//! Nothing here reads files: tables come through [`ReadFile`].

mod expression;
mod functions;
mod inputs;
mod limits;
pub mod model;
mod orders;
mod rules;
mod schedule;
mod scores;
mod tables;

use std::collections::{HashMap, HashSet};

pub use functions::{FUNCTIONS, Function, NAMES};
pub use inputs::InputTensor;

use crate::diagnostics::{Code, Diagnostic, Severity, did_you_mean};
use crate::ir::{self, Binary, Kind, Op, SetId, Side, Strategy, Type, ValueId};
use crate::source::Span;
use crate::syntax::ast;

/// Reads a file named in a source text, relative to the file that names it.
pub trait ReadFile {
    /// The bytes, or a sentence that says why not.
    ///
    /// # Errors
    /// A sentence for the user.
    fn read(&self, from: u16, path: &str) -> Result<Vec<u8>, String>;

    /// The numbers of an input; `None` where the host has not given it.
    fn input(&self, _name: &str) -> Option<&InputTensor> {
        None
    }
}

/// Reads no files.
pub struct NoFiles;

impl ReadFile for NoFiles {
    fn read(&self, _: u16, _: &str) -> Result<Vec<u8>, String> {
        Err("files cannot be read here".to_owned())
    }
}

/// All declarations in sight of a strategy.
#[derive(Default)]
pub struct Declarations<'a> {
    /// Strategies by name.
    pub strategies: HashMap<&'a str, &'a ast::Strategy>,
    /// Some file could not be read or understood, which was reported: there may be more strategies.
    pub is_incomplete: bool,
}

impl<'a> Declarations<'a> {
    /// Collects the strategies of all files; of those with one name the first counts, the others are reported.
    pub fn collect(files: impl IntoIterator<Item = &'a ast::File>, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut declarations = Declarations::default();
        let mut models: HashMap<&str, Span> = HashMap::new();
        for item in files.into_iter().flat_map(|file| &file.items) {
            let (name, earlier) = match item {
                ast::Item::Strategy(strategy) => {
                    let known = *declarations.strategies.entry(&strategy.name.node).or_insert(strategy);
                    (&strategy.name, known.name.span)
                }
                ast::Item::Model(model) => (&model.name, *models.entry(&model.name.node).or_insert(model.name.span)),
                ast::Item::Import(_) => continue,
            };
            if earlier != name.span {
                diagnostics.push(
                    Diagnostic::new(Code::E0202, name.span, format!("`{}` is declared twice", name.node))
                        .also(earlier, "first here"),
                );
            }
        }
        declarations
    }
}

/// Elaborates a strategy with the given parameters (expressions of the same language).
pub fn check(
    declarations: &Declarations<'_>,
    files: &dyn ReadFile,
    strategy: &ast::Strategy,
    params: &[(ast::Ident, ast::Expr)],
) -> (Option<Strategy>, Vec<Diagnostic>) {
    let mut checker = Checker::new(declarations, files);
    checker.strategy.name.clone_from(&strategy.name.node);
    checker.layouts(strategy, &mut Vec::new(), 0);
    let args = params.iter().map(|(name, value)| (name.clone(), checker.expression(value))).collect();
    checker.body(strategy, args, true);
    checker.size();
    checker.looks_back_in_rules();
    checker.rules_over_clusters();
    let failed = checker.diagnostics.iter().any(|found| found.severity() == Severity::Error);
    if failed {
        // Behind a mistake nothing is looked up, so that names seem unused.
        checker.diagnostics.retain(|found| found.code != Code::W0501);
    }
    ((!failed).then_some(checker.strategy), checker.diagnostics)
}

/// What segments are called in the shipped models, and the word for one with axes.
const USUAL_SEGMENTS: &[&str] = &["text", "image", "video", "vision"];

/// What an expression stands for while checking.
#[derive(Clone, Debug)]
enum Term {
    /// A value of the IR.
    Value(ValueId),
    /// Several values.
    Tuple(Vec<Term>),
    /// `[a, b]`.
    List(Vec<Term>),
    /// `"text"`.
    Text(String),
    /// `q` or `k`.
    Side(Side),
    /// `reuse`, `taylor(n)`: order of the forecast.
    Mode(ValueId),
    /// `input("name", ...)`.
    Input(inputs::Declared),
    /// Something that was reported already.
    Hole,
}

struct Binding {
    term: Term,
    span: Span,
    used: bool,
    /// Warn when it is never used.
    watched: bool,
}

#[derive(Default)]
struct Scope {
    names: HashMap<String, Binding>,
}

struct Checker<'a> {
    declarations: &'a Declarations<'a>,
    files: &'a dyn ReadFile,
    strategy: Strategy,
    diagnostics: Vec<Diagnostic>,
    scopes: Vec<Scope>,
    /// Conjunction of the guards around the statement.
    guard: Option<ValueId>,
    /// The guard around the body of the strategy being elaborated.
    outer_guard: Option<ValueId>,
    /// Strategies being elaborated, innermost last, and whether each has a schedule of its own.
    stack: Vec<(String, bool)>,
    schedule_span: Option<Span>,
    table_ids: HashMap<String, Option<u16>>,
    limits: limits::Limits,
}

impl<'a> Checker<'a> {
    fn new(declarations: &'a Declarations<'a>, files: &'a dyn ReadFile) -> Self {
        Checker {
            declarations,
            files,
            strategy: Strategy::default(),
            diagnostics: Vec::new(),
            scopes: vec![Scope::default()],
            guard: None,
            outer_guard: None,
            stack: Vec::new(),
            schedule_span: None,
            table_ids: HashMap::new(),
            limits: limits::Limits::default(),
        }
    }

    /// Reports and gives a hole.
    fn hole(&mut self, diagnostic: Diagnostic) -> Term {
        self.report(diagnostic);
        Term::Hole
    }

    /// Adds a value whose operands are known to fit.
    fn push(&mut self, op: Op, span: Span) -> Result<ValueId, Term> {
        match ir::typing::type_of(&self.strategy.graph, &op) {
            Ok(ty) => {
                let id = self.strategy.graph.push(op, ty, span);
                if self.deepen(id, span) { Ok(id) } else { Err(Term::Hole) }
            }
            Err(reason) => Err(self.hole(Diagnostic::new(Code::E0206, span, reason))),
        }
    }

    fn push_term(&mut self, op: Op, span: Span) -> Term {
        self.push(op, span).map_or_else(|hole| hole, Term::Value)
    }

    fn int(&mut self, value: i64, span: Span) -> ValueId {
        self.strategy.graph.push(Op::Int(value), Type::scalar(Kind::Int), span)
    }

    fn boolean(&mut self, value: bool, span: Span) -> ValueId {
        self.strategy.graph.push(Op::Bool(value), Type::scalar(Kind::Bool), span)
    }

    /// Reports a value with more operations than later stages evaluate.
    fn size(&mut self) {
        if let Some(id) = ir::validate::too_large(&self.strategy.graph) {
            let span = self.strategy.graph.value(id).span;
            self.report(
                Diagnostic::new(Code::E0309, span, "this value has too many operations, those of its parts counted")
                    .help("write it with fewer operations, or read it from a `table`"),
            );
        }
    }

    /// Reports rules that look at what earlier steps did: it is known where a schedule is made, and only there.
    fn looks_back_in_rules(&mut self) {
        let rules = self.strategy.rules.iter();
        let roots = rules.flat_map(|rule| [Some(rule.predicate), rule.guard, rule.order].into_iter().flatten());
        let orders = self.strategy.orders.iter().filter_map(|rule| rule.guard);
        let looks_back = |op: &Op| matches!(op, Op::LastComputed | Op::ReusedSteps | Op::Accumulated(_)).then_some(());
        if let Some((span, ())) = self.first_of(roots.chain(orders).collect(), looks_back) {
            let message = "what earlier steps did is known in schedules only";
            self.report(Diagnostic::new(Code::E0209, span, message));
        }
    }

    /// The first value that some values need and that is one of those looked for.
    fn first_of<T>(&self, roots: Vec<ValueId>, is: impl Fn(&Op) -> Option<T>) -> Option<(Span, T)> {
        let graph = &self.strategy.graph;
        let needed = graph.needed(&roots, |_| false);
        let mut values = graph.values().zip(needed).filter(|(_, needed)| *needed);
        values.find_map(|((_, value), _)| Some((value.span, is(&value.op)?)))
    }

    /// Which of some places a value depends on.
    fn depends_on(&self, id: ValueId, places: &[ir::Place]) -> Option<ir::Place> {
        let (mut open, mut seen) = (vec![id], HashSet::new());
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            match self.strategy.graph.op(id) {
                Op::Place(place) if places.contains(place) => return Some(*place),
                op => open.extend(op.operands()),
            }
        }
        None
    }

    fn ty(&self, id: ValueId) -> Type {
        self.strategy.graph.ty(id)
    }

    /// `a and b` of two truth scalars, where either may be absent.
    fn conjunction(&mut self, a: Option<ValueId>, b: Option<ValueId>, span: Span) -> Option<ValueId> {
        match (a, b) {
            (Some(a), Some(b)) => self.push(Op::Binary(Binary::And, a, b), span).ok(),
            (one, other) => one.or(other),
        }
    }

    // ---- names ----

    fn declare(&mut self, name: &ast::Ident, term: Term, watched: bool) {
        if let Some(why) = self.reserved(&name.node) {
            self.report(
                Diagnostic::new(Code::E0202, name.span, format!("`{}` is taken: {why}", name.node))
                    .help("choose another name"),
            );
            return;
        }
        let watched = watched && !name.node.starts_with('_');
        let binding = Binding { term, span: name.span, used: false, watched };
        // A name means one thing in a strategy, in the blocks inside of it too.
        let Some(earlier) = self.scopes.iter().find_map(|scope| scope.names.get(&name.node)).map(|found| found.span)
        else {
            if let Some(scope) = self.scopes.last_mut() {
                scope.names.insert(name.node.clone(), binding);
            }
            return;
        };
        self.report(
            Diagnostic::new(Code::E0202, name.span, format!("`{}` is declared twice", name.node))
                .also(earlier, "first here"),
        );
    }

    fn lookup(&mut self, name: &str) -> Option<Term> {
        self.scopes.iter_mut().rev().find_map(|scope| {
            let binding = scope.names.get_mut(name)?;
            binding.used = true;
            Some(binding.term.clone())
        })
    }

    fn names_in_scope(&self) -> Vec<String> {
        let declared = self.scopes.iter().flat_map(|scope| scope.names.keys().cloned());
        declared.chain(functions::NAMES.iter().map(|name| (*name).to_owned())).collect()
    }

    fn leave_scope(&mut self) {
        let Some(scope) = self.scopes.pop() else { return };
        let mut unused: Vec<_> =
            scope.names.into_iter().filter(|(_, binding)| binding.watched && !binding.used).collect();
        unused.sort_by_key(|(_, binding)| binding.span);
        for (name, binding) in unused {
            self.report(
                Diagnostic::new(Code::W0501, binding.span, format!("`{name}` is never used"))
                    .help("remove it, or begin its name with `_`"),
            );
        }
    }

    fn reserved(&self, name: &str) -> Option<&'static str> {
        if functions::NAMES.contains(&name) {
            Some("the language defines it")
        } else if functions::is_function(name) {
            Some("it is a function of the language")
        } else {
            None
        }
    }

    // ---- segments ----

    /// The set a `Set` of the tree names; reports segments that the layout lacks.
    fn set(&mut self, set: &ast::Set) -> Option<SetId> {
        let mut parts = Vec::new();
        let mut whole = false;
        let mut fine = true;
        for (name, which) in &set.parts {
            if name.node == "all" && which.is_none() {
                whole = true;
                continue;
            }
            let which = match which.as_ref().map(|which| which.node.as_str()) {
                None => ir::Which::Whole,
                Some("valid") => ir::Which::Valid,
                Some("pad") => ir::Which::Pad,
                Some(other) => {
                    let span = which.as_ref().map_or(name.span, |which| which.span);
                    self.report(
                        Diagnostic::new(Code::E0207, span, format!("a segment has no part `{other}`"))
                            .help("the parts of a segment are `valid` and `pad`"),
                    );
                    fine = false;
                    continue;
                }
            };
            if self.strategy.layout.iter().any(|segment| segment.name == name.node) {
                parts.push(ir::Part { segment: name.node.clone(), which });
            } else {
                self.unknown_segment(name);
                fine = false;
            }
        }
        if self.strategy.graph.sets().len() > limits::MAX_SETS && !self.limits.reached {
            let message = format!("more than {} different sets of segments", limits::MAX_SETS);
            let span = set.parts.first().map(|(name, _)| name.span).unwrap_or_default();
            self.too_large(span, message, "write fewer of them");
        }
        fine.then(|| if whole { SetId::ALL } else { self.strategy.graph.set(parts) })
    }

    fn unknown_segment(&mut self, name: &ast::Ident) {
        let known: Vec<String> =
            self.strategy.layout.iter().map(|segment| segment.name.clone()).chain(["all".to_owned()]).collect();
        let mut diagnostic = Diagnostic::new(
            Code::E0207,
            name.span,
            format!("`{}` is not a segment of this strategy's layout", name.node),
        )
        .label(format!("segments: {}", code_list(&known)));
        let is_usual = USUAL_SEGMENTS.contains(&name.node.as_str());
        diagnostic = match did_you_mean(&name.node, known.iter().map(String::as_str)) {
            // Then the layout has the mistake, and all of its uses.
            Some(near) if is_usual => {
                diagnostic.help(format!("is `{near}` in the layout meant to be `{}`?", name.node))
            }
            Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), name.span, near),
            None if self.strategy.layout.is_empty() => {
                diagnostic.help(format!("say that the strategy needs it: `layout {}`", name.node))
            }
            None => diagnostic.help(format!("name it in the layout, as in `layout {} ++ ...`", name.node)),
        };
        self.report(diagnostic);
    }

    /// Index of an axis name in the graph, registered when the layout has it.
    fn axis(&mut self, name: &str) -> Option<u8> {
        let known = self.strategy.layout.iter().any(|segment| segment.axes.iter().any(|axis| axis == name));
        known.then(|| {
            let axes = &mut self.strategy.graph.axes;
            let index = axes.iter().position(|axis| axis == name).unwrap_or_else(|| {
                axes.push(name.to_owned());
                axes.len() - 1
            });
            index as u8
        })
    }

    /// The axes of the first segment that has any.
    fn grid_axes(&self) -> Vec<String> {
        self.strategy
            .layout
            .iter()
            .find(|segment| !segment.axes.is_empty())
            .map(|segment| segment.axes.clone())
            .unwrap_or_default()
    }

    /// Merges the layouts of a strategy and of those it uses, before anything refers to them.
    fn layouts(&mut self, strategy: &ast::Strategy, seen: &mut Vec<String>, depth: usize) {
        // Past the limit of the depth `body` reports what uses what.
        if seen.contains(&strategy.name.node)
            || depth > limits::MAX_USE_DEPTH
            || !self.spend(seen.len(), strategy.name.span)
        {
            return;
        }
        seen.push(strategy.name.node.clone());
        let mut first: Option<Span> = None;
        for stmt in &strategy.body {
            let ast::StmtKind::Layout(segments) = &stmt.kind else { continue };
            if let Some(first) = first.replace(stmt.span) {
                self.report(
                    Diagnostic::new(Code::E0108, stmt.span, "a strategy has one `layout`").also(first, "first here"),
                );
            }
            for (name, axes) in segments {
                self.layout_segment(name, axes);
            }
        }
        for name in used_strategies(&strategy.body) {
            if let Some(used) = self.declarations.strategies.get(name) {
                self.layouts(used, seen, depth + 1);
            }
        }
    }

    fn layout_segment(&mut self, name: &ast::Ident, axes: &[ast::Ident]) {
        if name.node == "all" {
            self.report(Diagnostic::new(Code::E0202, name.span, "`all` is the whole sequence and no segment"));
            return;
        }
        let (taken, axes): (Vec<&ast::Ident>, Vec<&ast::Ident>) =
            axes.iter().partition(|axis| self.reserved(&axis.node).is_some());
        for axis in taken {
            let message = format!("an axis cannot be called `{}`: the language has that name", axis.node);
            self.report(
                Diagnostic::new(Code::E0202, axis.span, message)
                    .help("call it something else in the model and the layout"),
            );
        }
        let axes: Vec<String> = axes.into_iter().map(|axis| axis.node.clone()).collect();
        let is_full = self.strategy.layout.len() >= limits::MAX_SEGMENTS;
        match self.strategy.layout.iter_mut().find(|segment| segment.name == name.node) {
            Some(segment) => {
                for axis in axes {
                    if !segment.axes.contains(&axis) {
                        segment.axes.push(axis);
                    }
                }
            }
            None if is_full => {
                let message = format!("a layout of more than {} segments", limits::MAX_SEGMENTS);
                self.too_large(name.span, message, "join segments that are treated alike");
            }
            None => {
                self.strategy.layout.push(ir::LayoutSegment { name: name.node.clone(), axes, span: name.span });
            }
        }
    }

    // ---- bodies ----

    fn body(&mut self, strategy: &ast::Strategy, args: Vec<(ast::Ident, Term)>, outermost: bool) {
        if self.stack.iter().any(|(name, _)| *name == strategy.name.node) {
            let names: Vec<&str> = self.stack.iter().map(|(name, _)| name.as_str()).collect();
            let chain = names.join("` uses `");
            self.report(
                Diagnostic::new(
                    Code::E0210,
                    strategy.name.span,
                    format!("`{}` uses itself: `{chain}` uses `{}`", strategy.name.node, strategy.name.node),
                )
                .help("remove one of the `use` statements"),
            );
            return;
        }
        if self.stack.len() >= limits::MAX_USE_DEPTH {
            let message = format!("strategies use each other more than {} deep", limits::MAX_USE_DEPTH);
            self.too_large(strategy.name.span, message, "use the inner ones directly");
            return;
        }
        let has_schedule = strategy.body.iter().any(|stmt| matches!(stmt.kind, ast::StmtKind::Schedule(_)));
        self.stack.push((strategy.name.node.clone(), has_schedule));
        let outer_guard = std::mem::replace(&mut self.outer_guard, self.guard);
        // Names of the user do not reach into what it uses.
        let outer = std::mem::replace(&mut self.scopes, vec![Scope::default()]);
        self.params(strategy, args, outermost);
        self.scopes.push(Scope::default());
        self.statements(&strategy.body);
        self.leave_scope();
        self.leave_scope();
        self.scopes = outer;
        self.outer_guard = outer_guard;
        self.stack.pop();
    }

    fn params(&mut self, strategy: &ast::Strategy, args: Vec<(ast::Ident, Term)>, outermost: bool) {
        for (name, _) in &args {
            if !strategy.params.iter().any(|(param, _)| param.node == name.node) {
                self.unknown_param(strategy, name);
            }
        }
        for (name, default) in &strategy.params {
            let mut term = self.expression(default);
            if let Some((arg, given)) = args.iter().rev().find(|(arg, _)| arg.node == name.node) {
                self.fits_default(arg, given, &term, default.span);
                term = given.clone();
            }
            if outermost {
                let text = self.describe(&term);
                self.strategy.params.push((name.node.clone(), text));
            }
            self.declare(name, term, outermost);
        }
    }

    /// Reports a value of another form than the default has: where a tuple is expected, a number has no meaning.
    fn fits_default(&mut self, name: &ast::Ident, given: &Term, default: &Term, span: Span) {
        if matches!(given, Term::Hole) || matches!(default, Term::Hole) {
            return;
        }
        let (found, wanted) = (self.form(given), self.form(default));
        if found != wanted {
            self.report(
                Diagnostic::new(Code::E0308, name.span, format!("`{}` is {wanted}, given {found}", name.node))
                    .also(span, "its default"),
            );
        }
    }

    /// What a term is, in words; integers and reals are one.
    fn form(&self, term: &Term) -> String {
        match term {
            Term::Value(id) if self.ty(*id).kind == Kind::Bool => "a truth value".to_owned(),
            Term::Value(_) => "a number".to_owned(),
            Term::Tuple(items) => format!("a tuple of {}", items.len()),
            Term::List(_) => "a list".to_owned(),
            Term::Text(_) => "a text".to_owned(),
            Term::Side(_) => "a side of the attention".to_owned(),
            Term::Mode(_) => "a way of reuse".to_owned(),
            Term::Input(_) => "an input".to_owned(),
            Term::Hole => "unknown".to_owned(),
        }
    }

    fn unknown_param(&mut self, strategy: &ast::Strategy, name: &ast::Ident) {
        let known: Vec<String> = strategy.params.iter().map(|(param, _)| param.node.clone()).collect();
        let message = format!("`{}` has no parameter `{}`", strategy.name.node, name.node);
        let mut diagnostic = Diagnostic::new(Code::E0308, name.span, message);
        diagnostic = if known.is_empty() {
            diagnostic.label("it has no parameters")
        } else {
            diagnostic.label(format!("parameters: {}", code_list(&known)))
        };
        if let Some(near) = did_you_mean(&name.node, known.iter().map(String::as_str)) {
            diagnostic = diagnostic.fix(format!("did you mean `{near}`?"), name.span, near);
        }
        self.report(diagnostic);
    }

    fn statements(&mut self, body: &[ast::Stmt]) {
        for stmt in body {
            self.statement(stmt, body);
        }
    }

    fn statement(&mut self, stmt: &ast::Stmt, siblings: &[ast::Stmt]) {
        use ast::StmtKind;
        if !self.spend(1, stmt.span) {
            return;
        }
        match &stmt.kind {
            StmtKind::Layout(_) => self.only_outside_guards(stmt, "layout"),
            StmtKind::Order { segment, order } => self.order(segment.as_ref(), order, stmt.span),
            StmtKind::Block { q, kv } => self.block(q, kv.as_ref(), stmt.span),
            StmtKind::Let(name, value) => {
                let term = self.expression(value);
                self.declare(name, term, true);
            }
            StmtKind::Keep(rule) => self.rule(ir::Action::Keep, rule, stmt.span),
            StmtKind::Skip(rule) => self.rule(ir::Action::Skip, rule, stmt.span),
            StmtKind::Cache { segments, predicate, mode } => {
                self.cache(segments, predicate.as_ref(), mode.as_ref(), stmt.span);
            }
            StmtKind::Guard { guard, body, otherwise } => {
                self.guarded(guard, body, otherwise.as_deref(), siblings, stmt.span);
            }
            StmtKind::Schedule(lines) => self.schedule(lines, stmt.span),
            StmtKind::Use { name, args } => self.use_strategy(name, args),
            StmtKind::Quirk(text) => self.strategy.quirks.push(text.node.clone()),
        }
    }

    fn only_outside_guards(&mut self, stmt: &ast::Stmt, word: &str) {
        if self.guard != self.outer_guard {
            self.report(
                Diagnostic::new(Code::E0108, stmt.span, format!("`{word}` holds for the whole strategy"))
                    .help(format!("move `{word}` out of the guard")),
            );
        }
    }

    fn use_strategy(&mut self, name: &ast::Ident, args: &[ast::Arg]) {
        let Some(&used) = self.declarations.strategies.get(name.node.as_str()) else {
            if self.declarations.is_incomplete {
                return;
            }
            let known: Vec<&str> = self.declarations.strategies.keys().copied().collect();
            let mut diagnostic =
                Diagnostic::new(Code::E0201, name.span, format!("there is no strategy `{}`", name.node));
            diagnostic = match did_you_mean(&name.node, known) {
                Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), name.span, near),
                None => diagnostic.help("import the file that declares it: `import \"path.omni\"`"),
            };
            return self.report(diagnostic);
        };
        let mut bound: Vec<(ast::Ident, Term)> = Vec::new();
        for arg in args {
            let term = self.expression(&arg.value);
            if let Some(again) = &arg.name
                && let Some((first, _)) = bound.iter().find(|(name, _)| name.node == again.node)
            {
                let first = first.span;
                self.given_twice(again, first);
                continue;
            }
            match &arg.name {
                Some(name) => bound.push((name.clone(), term)),
                None => self.report(
                    Diagnostic::new(Code::E0204, arg.value.span, "a strategy takes its parameters by name")
                        .help(format!("write `{} = ...`", used.params.first().map_or("name", |(name, _)| &name.node))),
                ),
            }
        }
        self.body(used, bound, false);
    }
}

/// Names of the strategies that statements use, guards included.
fn used_strategies(body: &[ast::Stmt]) -> Vec<&str> {
    body.iter()
        .flat_map(|stmt| match &stmt.kind {
            ast::StmtKind::Use { name, .. } => vec![name.node.as_str()],
            ast::StmtKind::Guard { body, otherwise, .. } => {
                let mut names = used_strategies(body);
                names.extend(used_strategies(otherwise.as_deref().unwrap_or_default()));
                names
            }
            _ => Vec::new(),
        })
        .collect()
}

/// "`a`, `b` and `c`".
fn code_list<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

//! Syntax errors in words.
//!
//! A piece of junk is parsed once more, alone and without recovery: pest then tells how far it fits and
//! which rules were tried there. The statement before it is parsed along, because junk often is the part of
//! a statement that no longer belonged to it (`keep a -> b wher p`). Time stays linear: pieces do not overlap.

use pest::Parser as _;
use pest::error::{ErrorVariant, InputLocation};

use super::super::lexer::{Kind, Token};
use super::convert::Reader;
use super::{Grammar, Rule};
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::source::Span;

/// Words that start a declaration.
const ITEMS: &[&str] = &["import", "model", "strategy"];
/// Words that start a statement.
const STATEMENTS: &[&str] = &[
    "layout", "order", "block", "let", "keep", "skip", "cache", "heads", "layers", "steps", "when", "schedule", "use",
    "quirk",
];
/// Words that start a line of a schedule.
const LINES: &[&str] = &["dense", "update", "refresh", "dispatch", "reuse", "layers"];
/// What a line that reuses may name.
const UNITS: &[&str] = &["attention", "modules", "layer"];
/// Words that start a field of a model; others are counts too.
const FIELDS: &[&str] = &["layers", "heads", "head_dim", "steps", "dtype", "tokens"];
/// Reserved words that neither start something nor connect two operands.
const OTHERS: &[&str] = &[
    "by", "where", "as", "lower", "per", "else", "while", "every", "from", "on", "except", "not", "rest", "dtype",
    "tokens", "true", "false",
];
/// Operators that are words.
const OPERATORS: &[&str] = &["and", "or", "mod", "div", "xor", "of"];
/// What people write for a sign of the language: foreign operators and characters that only look alike.
const LOOKALIKES: &[(&str, &str)] = &[
    ("→", "->"),
    ("⇒", "->"),
    ("↔", "<->"),
    ("≤", "<="),
    ("≥", ">="),
    ("≠", "!="),
    ("−", "-"),
    ("–", "-"),
    ("—", "-"),
    ("×", "x"),
    ("·", "*"),
    ("÷", "/"),
    ("…", ".."),
    ("“", "\""),
    ("”", "\""),
    ("„", "\""),
    ("\u{a0}", " "),
    ("\u{200b}", ""),
    ("&", "and"),
    ("|", "or"),
    ("!", "not"),
    ("%", "mod"),
    (":", "="),
    ("∧", "and"),
    ("∨", "or"),
    ("¬", "not"),
];

/// A word or text of the user in backticks, shortened when long.
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 40;
    let visible = |char: char| {
        if char.is_control() || char == '\u{a0}' { char.escape_unicode().to_string() } else { char.to_string() }
    };
    let short: String = text.chars().take(LONGEST).map(visible).collect();
    if text.chars().nth(LONGEST).is_some() { format!("`{short}...`") } else { format!("`{short}`") }
}

/// Where and why a piece does not fit.
struct Failure {
    /// First token that does not.
    at: usize,
    /// Rules that would have.
    expected: Vec<Rule>,
}

impl Failure {
    fn expects(&self, rule: Rule) -> bool {
        self.expected.contains(&rule)
    }
}

impl Reader<'_> {
    /// Reports a block that no `}` ends.
    pub(super) fn unclosed_block(&self, opening: usize, end: usize) {
        // An unclosed comment swallowed the rest; it has been reported.
        if self.scan.unclosed.last().is_some_and(|token| token.kind == Kind::BlockComment) {
            return;
        }
        let (end_span, found) = match self.token_at(end) {
            Some(token) => {
                (self.at(token.start, token.end), format!("{} cannot stand inside it", quote(token.of(self.text))))
            }
            None => (self.at(self.text.len(), self.text.len()), "the file ends here".to_owned()),
        };
        self.push(
            Diagnostic::new(Code::E0102, self.at(opening, opening + 1), "block without its closing `}`")
                .label("opened here")
                .also(end_span, found),
        );
    }

    /// Reports a piece of junk; `previous` is the start of the statement right before it.
    pub(super) fn junk(&self, start: usize, end: usize, only: Rule, previous: Option<usize>) {
        // What starts like a statement does not continue the one before it.
        let first = self.token_at(start).map_or("", |token| token.of(self.text));
        let from = previous.filter(|_| !starters(only).contains(&first)).unwrap_or(start);
        // A text without its quote swallowed the rest of its line; it has been reported.
        let unclosed = self.scan.unclosed.partition_point(|token| token.start < from);
        let swallowed = self.scan.unclosed.get(unclosed).is_some_and(|token| token.start < end);
        if self.is_full() || swallowed {
            return;
        }
        let failure = self.failure(from, start, end, only);
        self.push(self.describe(&failure, from, only));
        self.misspelt_lines(failure.at, end, only);
    }

    fn failure(&self, from: usize, start: usize, end: usize, only: Rule) -> Failure {
        let Err(error) = Grammar::parse(only, self.text.get(from..end).unwrap_or("")) else {
            return Failure { at: start, expected: Vec::new() };
        };
        let (InputLocation::Pos(at) | InputLocation::Span((at, _))) = error.location;
        match error.variant {
            ErrorVariant::ParsingError { positives, .. } => Failure { at: from + at, expected: positives },
            ErrorVariant::CustomError { .. } => Failure { at: from + at, expected: Vec::new() },
        }
    }

    /// Junk may hold several statements with misspelt words, one per line: the later ones.
    fn misspelt_lines(&self, after: usize, end: usize, only: Rule) {
        let first = self.tokens.partition_point(|token| token.start <= after);
        for token in self.tokens[first..].iter().take_while(|token| token.start < end) {
            if token.kind == Kind::Word
                && self.starts_line(*token)
                && let Some(near) = did_you_mean(token.of(self.text), starters(only).iter().copied())
            {
                let found = format!("found {}, expected {}", quote(token.of(self.text)), starter_name(only));
                self.push(self.misspelt(*token, found, near));
            }
        }
    }

    fn misspelt(&self, token: Token, message: String, near: &str) -> Diagnostic {
        let span = self.at(token.start, token.end);
        Diagnostic::new(Code::E0101, span, message).fix(format!("did you mean `{near}`?"), span, near)
    }

    fn token_at(&self, at: usize) -> Option<Token> {
        self.tokens.get(self.tokens.partition_point(|token| token.end <= at)).copied()
    }

    fn token_before(&self, at: usize) -> Option<Token> {
        self.tokens
            .partition_point(|token| token.end <= at)
            .checked_sub(1)
            .and_then(|index| self.tokens.get(index))
            .copied()
    }

    /// Whether it is a name with `=` behind it.
    fn is_assigned(&self, token: Token) -> bool {
        let next = self.tokens.get(self.tokens.partition_point(|known| known.start <= token.start));
        token.kind == Kind::Word
            && !is_reserved(token.of(self.text))
            && next.is_some_and(|next| next.of(self.text) == "=")
    }

    fn starts_line(&self, token: Token) -> bool {
        let before = self.text[..token.start].trim_end_matches([' ', '\t', '\r']);
        before.is_empty() || before.ends_with('\n')
    }

    fn describe(&self, failure: &Failure, from: usize, only: Rule) -> Diagnostic {
        let token = self.token_at(failure.at);
        let opening = self.unclosed_bracket(from, failure);
        if let Some(opening) = opening
            && token.is_none_or(|token| self.ends_bracket(token))
        {
            return self.unclosed(opening, token);
        }
        let Some(token) = token else {
            let end = self.text.len();
            let message = format!("found the end of the file, expected {}", expected(&failure.expected, only));
            return Diagnostic::new(Code::E0101, self.at(end, end), message);
        };
        if let Some(diagnostic) = self.half_a_number(token) {
            return diagnostic;
        }
        let word = token.of(self.text);
        let span = self.at(token.start, token.end);
        let new_statement = failure.expects(Rule::EOI) && token.kind == Kind::Word && self.starts_line(token);
        let wanted = if new_statement { starter_name(only).to_owned() } else { expected(&failure.expected, only) };
        let message = format!("found {}, expected {wanted}", self.name_of(token, failure));
        if only == Rule::only_stmt && wanted == starter_name(only) && self.is_assigned(token) {
            let place = self.at(token.start, token.start);
            return Diagnostic::new(Code::E0101, span, message).fix("a value gets a name by `let`", place, "let ");
        }
        if let Some(diagnostic) = self.out_of_place(token, failure) {
            return diagnostic;
        }
        if let Some(near) = self.near(token, failure, only) {
            return self.misspelt(token, message, near);
        }
        if let Some((span, right)) = self.lookalike(token, failure, only) {
            let replacement = self.spaced(span, right);
            return Diagnostic::new(Code::E0101, span, message).fix(format!("write `{right}`"), span, replacement);
        }
        let diagnostic = match self.token_before(token.start) {
            // What is missing is missing at the end of the line before.
            Some(before) if self.starts_line(token) && !failure.expects(Rule::EOI) && before.start >= from => {
                Diagnostic::new(Code::E0101, self.at(before.end, before.end), message).also(span, "found this instead")
            }
            _ => Diagnostic::new(Code::E0101, span, message),
        };
        let diagnostic = match hint(word, failure, only) {
            Some(help) => diagnostic.help(help),
            None if self.wants_unit(token, failure) => diagnostic.help(
                "what is reused is the output of `attention`, those of the `modules`, or what the `layer` adds to its tokens",
            ),
            None => diagnostic,
        };
        match opening {
            Some(opening) => diagnostic.also(self.at(opening.start, opening.end), "opened here"),
            None => diagnostic,
        }
    }

    /// Mistakes that show by what stands before them.
    fn out_of_place(&self, token: Token, failure: &Failure) -> Option<Diagnostic> {
        let word = token.of(self.text);
        let before = self.token_before(token.start)?;
        let span = self.at(token.start, token.end);
        let no_segment = || Diagnostic::new(Code::E0101, span, format!("found {}, expected a segment", quote(word)));
        if failure.expects(Rule::name) {
            let opens_rule = matches!(before.of(self.text), "keep" | "skip" | "cache" | "->" | "<->");
            if opens_rule && matches!(word, "where" | "lower" | "as" | "->" | "<->") {
                let help = "say which segments, such as `text` or `image`; `all` is the whole sequence";
                return Some(no_segment().help(help));
            }
            if before.of(self.text) == "[" && token.kind == Kind::Number {
                let help = "brackets take a part of a score, as in `x[text -> image]`; tuples and lists cannot be indexed: \
                            give each element a name with `let`";
                return Some(no_segment().help(help));
            }
        }
        if word == "{" && failure.expects(Rule::dots) && !failure.expects(Rule::EOI) {
            let index = self.tokens.partition_point(|known| known.start < token.start);
            let guard = self.tokens[..index].iter().rev().find(|known| {
                matches!(known.of(self.text), "heads" | "layers" | "steps")
                    && (self.starts_line(**known)
                        || self
                            .token_before(known.start)
                            .is_none_or(|open| matches!(open.of(self.text), "{" | "}" | ";")))
            })?;
            let written = self.text.get(guard.end..before.end)?.trim();
            let place = self.at(before.end - written.len(), before.end);
            let message = format!("found `{{`, expected `..`: {} alone is no range", quote(written));
            let help = format!("a single place is written `{} [{written}]`", guard.of(self.text));
            return Some(Diagnostic::new(Code::E0101, span, message).fix(help, place, format!("[{written}]")));
        }
        None
    }

    /// What the language writes for a foreign sign, and the bytes of that sign.
    fn lookalike(&self, token: Token, failure: &Failure, only: Rule) -> Option<(Span, &'static str)> {
        let word = token.of(self.text);
        let doubled = |sign: &str| self.text[token.end..].starts_with(sign);
        if word == "=" && doubled(">") {
            return Some((self.at(token.start, token.end + 1), "->"));
        }
        if word == "=" && doubled("<") {
            return Some((self.at(token.start, token.end + 1), "<="));
        }
        if word == "=" && failure.expects(Rule::infix) && only != Rule::only_field {
            return Some((self.at(token.start, token.end), "=="));
        }
        let (_, right) = LOOKALIKES.iter().find(|(wrong, _)| *wrong == word)?;
        let double = matches!(word, "&" | "|") && doubled(word);
        Some((self.at(token.start, token.end + usize::from(double)), right))
    }

    /// A replacement with blanks around it if it is a word that would touch another.
    fn spaced(&self, span: Span, right: &str) -> String {
        if !right.starts_with(|char: char| char.is_ascii_alphabetic()) {
            return right.to_owned();
        }
        let touches = |char: Option<char>| char.is_some_and(|char| char.is_ascii_alphanumeric() || char == '_');
        let before = touches(self.text[..span.start as usize].chars().next_back());
        let after = touches(self.text[span.end as usize..].chars().next());
        format!("{}{right}{}", if before { " " } else { "" }, if after { " " } else { "" })
    }

    fn name_of(&self, token: Token, failure: &Failure) -> String {
        let word = token.of(self.text);
        let name = failure.expects(Rule::name) || failure.expects(Rule::any_name) || failure.expects(Rule::param);
        if name && is_reserved(word) { format!("the reserved word {}", quote(word)) } else { quote(word) }
    }

    /// Whether it could have said what is reused. The grammar takes that behind any kind, for the sake of the message.
    fn wants_unit(&self, token: Token, failure: &Failure) -> bool {
        failure.expects(Rule::unit)
            && !self.starts_line(token)
            && self.token_before(token.start).is_some_and(|before| before.of(self.text) == "reuse")
    }

    /// The keyword the user probably meant.
    fn near(&self, token: Token, failure: &Failure, only: Rule) -> Option<&'static str> {
        let word = token.of(self.text);
        if token.kind != Kind::Word || is_reserved(word) {
            return None;
        }
        let mut candidates: Vec<&'static str> =
            failure.expected.iter().flat_map(|rule| words(*rule)).copied().collect();
        if self.wants_unit(token, failure) {
            candidates.extend(UNITS);
        }
        if self.starts_line(token) && failure.expects(Rule::EOI) {
            candidates.extend(starters(only));
        }
        did_you_mean(word, candidates)
    }

    /// `.5` and `5.`: the grammar sees a point that stands alone.
    fn half_a_number(&self, point: Token) -> Option<Diagnostic> {
        if point.of(self.text) != "." {
            return None;
        }
        let touching =
            |token: &Token| token.kind == Kind::Number && (token.end == point.start || token.start == point.end);
        let (before, after) =
            (self.token_before(point.start).filter(touching), self.token_at(point.end).filter(touching));
        let start = before.map_or(point.start, |token| token.start);
        let end = after.map_or(point.end, |token| token.end);
        if before.is_none() && after.is_none() {
            return None;
        }
        let span = self.at(start, end);
        let shown = self.text.get(start..end).unwrap_or("");
        let diagnostic = Diagnostic::new(Code::E0104, span, format!("malformed number {}", quote(shown)));
        Some(match (before, after) {
            (None, _) => diagnostic.fix("a digit stands before the point", span, format!("0{shown}")),
            (_, None) => diagnostic.fix("a digit stands after the point", span, format!("{shown}0")),
            _ => diagnostic.help("a number has one point"),
        })
    }

    /// The innermost bracket that is open where the failure is, if closing it was possible there.
    fn unclosed_bracket(&self, from: usize, failure: &Failure) -> Option<Token> {
        if !failure.expects(Rule::rparen) && !failure.expects(Rule::rbracket) {
            return None;
        }
        let first = self.tokens.partition_point(|token| token.start < from);
        let mut open = Vec::new();
        for token in self.tokens[first..].iter().take_while(|token| token.start < failure.at) {
            match token.of(self.text) {
                "(" | "[" => open.push(*token),
                ")" | "]" => drop(open.pop()),
                _ => {}
            }
        }
        open.pop()
    }

    /// Whether a token shows that a bracket should have been closed before it.
    fn ends_bracket(&self, token: Token) -> bool {
        let word = token.of(self.text);
        let other_clause = ["where", "lower", "as", "keep", "skip", "cache", "let"].contains(&word);
        matches!(word, "{" | "}" | ";") || other_clause || (is_reserved(word) && self.starts_line(token))
    }

    fn unclosed(&self, opening: Token, before: Option<Token>) -> Diagnostic {
        let close = if opening.of(self.text) == "(" { ")" } else { "]" };
        let end = self
            .token_before(before.map_or(self.text.len(), |token| token.start))
            .map_or(opening.end, |token| token.end);
        let opened = quote(opening.of(self.text));
        Diagnostic::new(
            Code::E0102,
            self.at(opening.start, opening.end),
            format!("{opened} without its closing `{close}`"),
        )
        .label("opened here")
        .also(self.at(end, end), "expected here at the latest")
    }
}

/// Advice for mistakes that are made in good faith.
fn hint(word: &str, failure: &Failure, only: Rule) -> Option<String> {
    let is = |words: &[&str]| words.contains(&word);
    let wants_name = failure.expects(Rule::name) || failure.expects(Rule::any_name) || failure.expects(Rule::param);
    if wants_name && is_reserved(word) {
        return Some(format!("`{word}` is a word of the language, choose another name"));
    }
    if word.starts_with(|char: char| !char.is_ascii() && char.is_alphabetic()) {
        return Some("names consist of the letters a to z, digits and `_`".to_owned());
    }
    if only == Rule::only_item && (is(STATEMENTS) || is(LINES)) {
        return Some("statements stand inside `strategy NAME { ... }`".to_owned());
    }
    if only == Rule::only_item && word == "}" {
        return Some("this `}` closes nothing; is there one too many above it?".to_owned());
    }
    if only == Rule::only_stmt && word == "rest" {
        return Some("say of what: `heads rest { ... }`, `layers rest { ... }` or `steps rest { ... }`".to_owned());
    }
    if only == Rule::only_line && word == "steps" {
        return Some("a line says when with `while`, as in `while step < 2`, or with `on [0, 1]`".to_owned());
    }
    if only == Rule::only_stmt && is(LINES) {
        return Some("this stands inside `schedule { ... }`".to_owned());
    }
    if failure.expects(Rule::dots) && !failure.expects(Rule::EOI) {
        return Some("a single index is written `[3]`, a range `3..8` or `3..`".to_owned());
    }
    match word {
        "where" => {
            Some("`where` stands before `lower` and `as`, once in a rule; join conditions with `and`".to_owned())
        }
        "=" if only == Rule::only_field => Some("fields are written without `=`, as in `layers 57`".to_owned()),
        "*" if failure.expects(Rule::operand) => Some("powers are written `^`".to_owned()),
        "else" => Some("`else` follows the `}` of `when`, and is followed by `{`".to_owned()),
        "--" | "#" => Some("comments start with `//`".to_owned()),
        "'" => Some("texts stand in double quotes".to_owned()),
        _ => None,
    }
}

fn is_reserved(word: &str) -> bool {
    [ITEMS, STATEMENTS, LINES, OTHERS, OPERATORS].iter().any(|words| words.contains(&word))
}

fn starters(only: Rule) -> &'static [&'static str] {
    match only {
        Rule::only_item => ITEMS,
        Rule::only_line => LINES,
        Rule::only_field => FIELDS,
        Rule::only_param => &[],
        _ => STATEMENTS,
    }
}

fn starter_name(only: Rule) -> &'static str {
    match only {
        Rule::only_item => "`import`, `model` or `strategy`",
        Rule::only_line => "a line of the schedule (`dense`, `update`, `refresh`, `dispatch`, `reuse`, `layers`)",
        Rule::only_param => "a name and its value",
        Rule::only_field => "a field (`layers`, `heads`, `head_dim`, `steps`, `dtype`, `tokens`)",
        _ => "a statement",
    }
}

/// The words a rule may start with.
fn words(rule: Rule) -> &'static [&'static str] {
    match rule {
        Rule::stmt | Rule::only_stmt => STATEMENTS,
        Rule::line | Rule::only_line => LINES,
        Rule::field | Rule::only_field => FIELDS,
        Rule::infix => OPERATORS,
        Rule::clause => &["while", "every", "on", "except"],
        Rule::places => &["rest"],
        Rule::where_ | Rule::kw_where => &["where"],
        Rule::lower | Rule::kw_lower => &["lower"],
        Rule::mode | Rule::kw_as => &["as"],
        Rule::only_item | Rule::import | Rule::model | Rule::strategy => ITEMS,
        Rule::kw_by => &["by"],
        Rule::kw_per => &["per"],
        Rule::kw_from => &["from"],
        Rule::kw_every => &["every"],
        Rule::kw_on => &["on"],
        Rule::kw_else => &["else"],
        _ => &[],
    }
}

/// The expected rules as a list in words.
fn expected(rules: &[Rule], only: Rule) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in rules.iter().filter_map(|rule| describe_rule(*rule, only)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.split_last() {
        None => starter_name(only).to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// A rule in words; none for what would only lengthen the list.
fn describe_rule(rule: Rule, only: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::EOI if only == Rule::only_stmt => "a new statement",
        Rule::EOI if only == Rule::only_line => "a new line",
        Rule::EOI if only == Rule::only_field => "a new field",
        Rule::EOI if only == Rule::only_param => "the end of the value",
        Rule::stmt | Rule::line | Rule::field => starter_name(only),
        Rule::import => "`import`",
        Rule::model => "`model`",
        Rule::strategy => "`strategy`",
        Rule::expr | Rule::operand | Rule::number | Rule::reference | Rule::paren | Rule::list => "an expression",
        Rule::infix => "an operator",
        Rule::name | Rule::any_name => "a name",
        Rule::param => "a parameter",
        Rule::arg => "an argument",
        Rule::set | Rule::part | Rule::segment | Rule::layout_item => "a segment",
        Rule::string => "a text in quotes",
        Rule::places => "`rest`, a range or a list",
        Rule::place => "an index or a range",
        Rule::range => "a range",
        Rule::block | Rule::line_block | Rule::model_block | Rule::open => "`{`",
        Rule::params | Rule::lparen | Rule::axes => "`(`",
        Rule::where_ | Rule::kw_where => "`where`",
        Rule::lower | Rule::kw_lower => "`lower`",
        Rule::mode | Rule::kw_as => "`as`",
        Rule::clause => "`while`, `every` or `on`",
        Rule::kw_every => "`every`",
        Rule::kw_on => "`on`",
        Rule::kw_by => "`by`",
        Rule::kw_per => "`per`",
        Rule::kw_from => "`from`",
        Rule::kw_else => "`else`",
        Rule::rparen => "`)`",
        Rule::rbracket => "`]`",
        Rule::close => "`}`",
        Rule::comma => "`,`",
        Rule::assign => "`=`",
        Rule::concat => "`++`",
        Rule::plus => "`+`",
        Rule::arrow => "`->`",
        Rule::both => "`<->`",
        Rule::dot => "`.`",
        Rule::dots => "`..`",
        Rule::times => "`x`",
        _ => return None,
    })
}

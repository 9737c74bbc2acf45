//! Text and validation of random IR.

use proptest::prelude::*;

use super::read::{read_predicate, read_program, read_strategy};
use super::samples::{self, Random};
use super::validate::{validate, validate_predicate, validate_program};
use super::*;

proptest! {
    #[test]
    fn text_reads_back_to_the_same_ir(seed: u64, bound: bool) {
        let mut r = Random::new(seed);
        let model = bound.then(|| samples::model(&mut r));
        let strategy = samples::strategy(&mut r, model);
        prop_assert_eq!(validate(&strategy), Ok(()));
        let text = strategy.to_string();
        let read = read_strategy(&text);
        prop_assert_eq!(read.as_ref().map(ToString::to_string), Ok(text));
        prop_assert_eq!(read, Ok(strategy));

        let program = samples::program(&mut r, 1, 1);
        prop_assert_eq!(validate_program(&program), Ok(()));
        prop_assert_eq!(read_program(&program.to_string()), Ok(program));

        let predicate = samples::predicate(&mut r);
        prop_assert_eq!(validate_predicate(&predicate), Ok(()));
        prop_assert_eq!(read_predicate(&predicate.to_string()), Ok(predicate));
    }

    #[test]
    fn altered_text_is_read_or_refused(seed: u64, cuts in prop::collection::vec((any::<u16>(), 0_usize..9, ".{0,3}"), 1..4)) {
        let mut r = Random::new(seed);
        let mut text = samples::strategy(&mut r, None).to_string();
        for (at, len, new) in cuts {
            let bound = |at: usize| (at..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
            let start = bound(usize::from(at) % (text.len() + 1));
            let end = bound((start + len).min(text.len()));
            text.replace_range(start..end, &new);
        }
        if let Ok(strategy) = read_strategy(&text) {
            let again = strategy.to_string();
            prop_assert_eq!(read_strategy(&again), Ok(strategy.clone()));
            let _ = validate(&strategy);
        }
    }
}

const SAMPLE: &str = "\
strategy sample
param tau = \"0.5\"
set image
set text
axis t
table \"windows.json\" int [2, 3] width 2 {(5 6)*4 (nan nan) (7 -0)}
%0: real vectors query all = pool mean of query
%1: real vectors key all = pool mean of key
%2: real [all -> all] = dot %0, %1
%3: real [image -> all] = slice %2 to [image -> _]
%4: real [image -> all] = softmax %3 over key
%5: real = 0.5
%6: bool [image -> all] = select top_p crossing of %4 amount %5 over key
%7: bool [all -> all] = embed %6
%8: int = head
%9: int = 3
%10: int = lookup 0 item 1 at [%8, %9] else %9
%11: int query_token = axis t of query
%12: bool query_token = less %11, %10
%13: bool mixed = and %7, %12
%14: bool = true
layout text []
order axes [t]
blocks %9, %9
rule skip %13 by density column 0.25 block 0.5 per t when %14
schedule dense while %14
schedule reuse every %9 from %9 except forecast %9
bound layer %9 exclusive
quirk \"published code rounds up\"
";

#[test]
fn the_form_is_the_documented_one() {
    let strategy = read_strategy(SAMPLE).expect("readable");
    assert_eq!(validate(&strategy), Ok(()));
    assert_eq!(strategy.to_string(), SAMPLE);
    assert_eq!(print::value(&strategy.graph, ValueId(4)), "%4: real [image -> all] = softmax %3 over key");
}

#[test]
fn malformed_text_names_the_line() {
    for (from, to, message) in [
        ("%3 over key", "%9 over key", "line 11: expected a value that is defined above, found `%9`"),
        ("%4: real", "%5: real", "line 11: expected `%4`, values are numbered in order, found `%5`"),
        ("(5 6)*4", "(5 6)*400", "line 6: table `windows.json` holds more than its 12 numbers"),
        ("[2, 3]", "[4000000000, 4000000000]", "line 6: tables hold more than 4194304 numbers"),
        ("softmax", "softmux", "line 11: expected an operation, found `softmux`"),
        ("set text", "set image", "line 4: a set is listed twice"),
        ("[image -> all] = slice", "[audio -> all] = slice", "line 10: a set that is not listed above"),
        ("rounds up\"", "rounds up", "line 29: expected a name, found a text without its closing quote"),
        ("%9: int = 3", "%9: int = head", "line 16: the operation is that of `%8` already"),
    ] {
        assert!(SAMPLE.contains(from), "{from}");
        let error = read_strategy(&SAMPLE.replacen(from, to, 1)).expect_err(to);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn what_has_no_meaning_is_named() {
    for (from, to, message) in [
        ("%5: real = 0.5", "%5: int = 4", "%6: the amount to select is one real number, found one integer"),
        ("%4: real [image -> all]", "%4: real [text -> all]", "%4: the type is"),
        ("rule skip", "rule cache", "%13: what a rule caches varies over keys"),
        ("when %14", "when %9", "%9: the guard of a rule is one truth value, found one integer"),
        ("every %9 from %9", "every %8 from %9", "%8: the schedule is the same for all heads of a layer"),
        ("blocks %9", "blocks %8", "%8: the size of a block is the same at every step, layer and head"),
        ("by density column 0.25", "by density column 1.25", "%13: the rule is lowered by a share"),
    ] {
        assert!(SAMPLE.contains(from), "{from}");
        let strategy = read_strategy(&SAMPLE.replacen(from, to, 1)).expect(to);
        let problems = validate(&strategy).expect_err(to);
        assert!(problems[0].starts_with(message), "{problems:?}");
    }
}

#[test]
fn trees_that_would_never_end_are_refused() {
    let mut text = "predicate\n%0: int = 1\n".to_string();
    for id in 1..40 {
        text.push_str(&format!("%{id}: int = add %{}, %{}\n", id - 1, id - 1));
    }
    text.push_str("%40: bool = true\nholds %40\n");
    let problems = validate_predicate(&read_predicate(&text).expect("readable")).expect_err("exponential");
    assert!(problems[0].contains("operations"), "{problems:?}");
}

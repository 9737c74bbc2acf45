//! Values of parameters as text, once the model is known.

use super::Dependence;
use crate::ir::scalar::{At, NoTokens, Scalars};
use crate::ir::{Extent, Graph, Strategy, ValueId};

/// Puts the numbers that follow from the model into the values of parameters.
pub(super) fn name(strategy: &mut Strategy) {
    let all_open = std::mem::take(&mut strategy.open_params);
    let same_everywhere = |id: &ValueId| {
        strategy.graph.ty(*id).extent == Extent::Scalar && Dependence::of(&strategy.graph, *id) == Dependence::default()
    };
    let ids: Vec<ValueId> = all_open.iter().map(|open| open.value).filter(same_everywhere).collect();
    let mut scalars = Scalars::new(&strategy.graph, &ids);
    scalars.evaluate(At::default(), &NoTokens);
    // From the last on, so that the places of the others stay.
    for open in all_open.into_iter().rev() {
        let words = value_words(&strategy.graph, &scalars, open.value);
        if let Some((_, text)) = strategy.params.get_mut(open.param as usize)
            && text.is_char_boundary(open.at as usize)
        {
            text.insert_str(open.at as usize, &words);
        }
    }
}

/// A value as text: its number, where it has one, or by what it differs.
fn value_words(graph: &Graph, scalars: &Scalars<'_>, id: ValueId) -> String {
    let on = Dependence::of(graph, id);
    let places = [(on.step, "step"), (on.layer, "layer"), (on.head, "head")];
    let places: Vec<&str> = places.iter().filter(|(depends, _)| *depends).map(|(_, name)| *name).collect();
    if graph.ty(id).extent != Extent::Scalar {
        return "an expression".to_owned();
    }
    if !places.is_empty() {
        return format!("one by {}", places.join(" and "));
    }
    scalars.get(id).to_string()
}

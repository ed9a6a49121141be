//! Makes a compiled template pay for what it makes. Jinja can double a string in a loop, repeat one a hundred million
//! times or pad a number to a gigabyte, and an allocation that fails takes the host with it. So every instruction that
//! can make something large is surrounded by calls that take its size from the thread's budget first.
//!
//! minijinja has no hook for that. What it has is access to its instructions, behind a feature that promises no
//! stability, which is why its version is pinned in Cargo.toml.

use minijinja::machinery::{Instruction, Instructions, Span, Token, WhitespaceConfig, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::budget::{self, charge, printed, shallow};
use super::costs::{before_filter, before_method};

/// Longest template. The largest known are a tenth of it.
const SOURCE_MAX: usize = 512 << 10;
/// Tokens of one `{{ }}` or `{% %}`: operators that follow each other nest in the parser.
const TAG_TOKENS_MAX: usize = 2048;
/// `{% %}` of one template: each elif nests in the one before it.
const TAGS_MAX: usize = 8192;

// No identifiers, so that no template can name or hide them.
const BEFORE_SUM: &str = "before +";
const BEFORE_CONCAT: &str = "before ~";
const BEFORE_PRODUCT: &str = "before *";
const BEFORE_FILTER: &str = "before |";
const AFTER: &str = "after";
/// Keeps `"x" * 100000000` from being computed while the template is compiled.
const NO_CONSTANT: &str = "cleave_no_constant";

/// Adds what guarded templates call.
pub fn install(environment: &mut Environment<'_>) {
    environment.add_function(BEFORE_SUM, |operands: Value| -> Result<Value, Error> {
        charge(operands.try_iter()?.fold(0, |sum, operand| sum.saturating_add(shallow(&operand))))?;
        reversed(&operands)
    });
    environment.add_function(BEFORE_CONCAT, |operands: Value| -> Result<Value, Error> {
        for operand in operands.try_iter()? {
            charge(printed(&operand)?)?;
        }
        reversed(&operands)
    });
    environment.add_function(BEFORE_PRODUCT, |operands: Value| -> Result<Value, Error> {
        let sizes = operands.try_iter()?.map(|operand| match operand.as_usize() {
            Some(number) => number,
            None => shallow(&operand).max(1),
        });
        let is_sized = |operand: Value| !matches!(operand.kind(), ValueKind::Number | ValueKind::Bool);
        if operands.try_iter()?.any(is_sized) {
            charge(sizes.fold(1, usize::saturating_mul))?;
        }
        reversed(&operands)
    });
    environment.add_function(BEFORE_FILTER, |arguments: Value, name: String| -> Result<Value, Error> {
        let list: Vec<Value> = arguments.try_iter()?.collect();
        if let Some((value, rest)) = list.split_first() {
            before_filter(&name, value, rest)?;
        }
        Ok(list.into_iter().rev().collect())
    });
    environment.add_function(AFTER, |result: Value| -> Result<Value, Error> {
        charge(shallow(&result))?;
        Ok(result)
    });
    environment.add_filter("map", map);
    environment.add_filter(NO_CONSTANT, |value: Value| value);
    environment.set_unknown_method_callback(|state: &State, value, method, arguments| {
        before_method(value, method, arguments)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
    // Printing for people who debug templates.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
}

/// Jinja's `map`, whose filter is charged for every element as if the template had applied it.
fn map(state: &State, value: Value, arguments: Rest<Value>) -> Result<Vec<Value>, Error> {
    let Some((name, rest)) = arguments.split_first().filter(|(name, _)| name.as_str().is_some()) else {
        return minijinja::filters::map(state, value, arguments);
    };
    let name = name.as_str().unwrap_or_default();
    let mut mapped = Vec::new();
    for item in value.try_iter()? {
        before_filter(name, &item, rest)?;
        let operands: Vec<Value> = std::iter::once(item).chain(rest.iter().cloned()).collect();
        let result = state.apply_filter(name, &operands)?;
        charge(budget::ELEMENT.saturating_add(shallow(&result)))?;
        mapped.push(result);
    }
    Ok(mapped)
}

/// The list from its end: unpacking it restores the order that its elements had on the stack.
fn reversed(list: &Value) -> Result<Value, Error> {
    let mut items: Vec<Value> = list.try_iter()?.collect();
    items.reverse();
    Ok(Value::from(items))
}

/// Refuses a source that the parser would nest too deeply over, and takes from the compiler what it would compute.
pub fn check_source(source: &str) -> Result<String, String> {
    if source.len() > SOURCE_MAX {
        return Err(format!("{} bytes: expected at most {SOURCE_MAX}", source.len()));
    }
    let (mut tags, mut tokens) = (0, 0);
    let (mut out, mut done) = (String::with_capacity(source.len()), 0);
    let mut previous = None;
    for token in tokenize(source, false, SyntaxConfig, WhitespaceConfig::default()) {
        // The compiler reports text that is not a token, and quotes it.
        let Ok((token, Span { start_offset, start_line, .. })) = token else { break };
        match token {
            Token::BlockStart | Token::VariableStart => {
                tags += usize::from(matches!(token, Token::BlockStart));
                tokens = 0;
            }
            Token::Mul if !matches!(previous, Some(Token::ParenOpen | Token::Comma | Token::BracketOpen)) => {
                let at = start_offset as usize;
                out.push_str(source.get(done..at).unwrap_or_default());
                out.push_str(&format!("|{NO_CONSTANT} "));
                done = at;
            }
            _ => {}
        }
        tokens += 1;
        if tokens > TAG_TOKENS_MAX {
            return Err(format!("line {start_line}: an expression of more than {TAG_TOKENS_MAX} parts"));
        }
        if tags > TAGS_MAX {
            return Err(format!("line {start_line}: more than {TAGS_MAX} statements"));
        }
        previous = Some(token);
    }
    out.push_str(source.get(done..).unwrap_or_default());
    Ok(out)
}

/// The same instructions with the calls that charge for them.
pub fn guarded<'a>(from: &Instructions<'a>) -> Result<Instructions<'a>, Error> {
    let mut to = Instructions::new(from.name(), from.source());
    // Where each instruction begins now.
    let mut places = Vec::with_capacity(from.len() + 1);
    for at in 0..from.len() as u32 {
        places.push(to.len() as u32);
        let Some(instruction) = from.get(at) else { break };
        for instruction in expanded(instruction)? {
            match (from.get_span(at), from.get_line(at)) {
                (Some(span), _) => to.add_with_span(instruction, span),
                (None, Some(line)) => to.add_with_line(instruction, line as u16),
                (None, None) => to.add(instruction),
            };
        }
    }
    places.push(to.len() as u32);
    for at in 0..to.len() as u32 {
        use Instruction::{BuildMacro, Iterate, Jump, JumpIfFalse, JumpIfFalseOrPop, JumpIfTrueOrPop};
        if let Some(
            Jump(target)
            | JumpIfFalse(target)
            | JumpIfFalseOrPop(target)
            | JumpIfTrueOrPop(target)
            | Iterate(target)
            | BuildMacro(_, target, _),
        ) = to.get_mut(at)
        {
            *target = places.get(*target as usize).copied().unwrap_or(u32::MAX);
        }
    }
    Ok(to)
}

fn expanded<'a>(instruction: &Instruction<'a>) -> Result<Vec<Instruction<'a>>, Error> {
    use Instruction as I;
    let after = I::CallFunction(AFTER, Some(1));
    let own = instruction.clone();
    let checked =
        |n, name| vec![I::BuildList(Some(n)), I::CallFunction(name, Some(1)), I::UnpackList(n), instruction.clone()];
    Ok(match instruction {
        // Through the formatter, which charges.
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::Add => checked(2, BEFORE_SUM),
        I::StringConcat => checked(2, BEFORE_CONCAT),
        I::Mul => checked(2, BEFORE_PRODUCT),
        I::ApplyFilter(name, Some(n), _) => vec![
            I::BuildList(Some(usize::from(*n))),
            I::LoadConst(Value::from(*name)),
            I::CallFunction(BEFORE_FILTER, Some(2)),
            I::UnpackList(usize::from(*n)),
            own,
            after,
        ],
        I::ApplyFilter(..) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "a filter with unpacked arguments is not supported"));
        }
        I::Include(_) | I::LoadBlocks => {
            return Err(Error::new(ErrorKind::InvalidOperation, "a chat template has no other templates to refer to"));
        }
        I::Slice
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(..)
        | I::Iterate(_)
        | I::Eq
        | I::Ne
        | I::Lt
        | I::Lte
        | I::Gt
        | I::Gte
        | I::In => vec![own, after],
        _ => vec![own],
    })
}

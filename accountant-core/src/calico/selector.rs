//! Calico's selectors over labels (`libcalico-go/lib/selector`): parsed, and asked.
//!
//! ```text
//! selector := ["all()"] | or          or := and { "||" and }          and := term { "&&" term }
//! term     := { "!" } ( "has(" label ")" | "all()" | "global()" | "(" or ")" | comparison )
//! comparison := label ( "==" | "!=" | "contains" | "starts with" | "ends with" ) text | label [ "not" ] "in" { texts }
//! ```
//!
//! Invariant: any text is a selector or an error with its place, and asking one takes time in proportion to its length.

use std::fmt;

/// Deepest nesting of parentheses and negations.
const DEEPEST: usize = 100;
/// Longest label.
const LONGEST_LABEL: usize = 512;

/// A selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Term);

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorError {
    /// Where in the text, in bytes.
    pub at: usize,
    /// What should be there.
    pub wanted: &'static str,
}

impl std::error::Error for SelectorError {}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of the selector must be {}", self.at, self.wanted)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    All,
    Has(Box<str>),
    Not(Box<Term>),
    And(Vec<Term>),
    Or(Vec<Term>),
    Compare(Box<str>, Comparison),
}

/// How the value of a label is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Comparison {
    Is(Box<str>),
    IsNot(Box<str>),
    Contains(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    In(Vec<Box<str>>),
    NotIn(Vec<Box<str>>),
}

impl Selector {
    /// Of a text; an empty one selects everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        parser.skip_blanks();
        if parser.rest().is_empty() {
            return Ok(Self(Term::All));
        }
        let term = parser.or(0)?;
        if parser.rest().is_empty() { Ok(Self(term)) } else { Err(parser.wants("the end, && or ||")) }
    }

    /// Whether labels are selected; `label` tells the value of one.
    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.holds(&label)
    }
}

impl Term {
    fn holds<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::All => true,
            Self::Has(name) => label(name).is_some(),
            Self::Not(term) => !term.holds(label),
            Self::And(terms) => terms.iter().all(|term| term.holds(label)),
            Self::Or(terms) => terms.iter().any(|term| term.holds(label)),
            Self::Compare(name, comparison) => comparison.holds(label(name)),
        }
    }
}

impl Comparison {
    /// A label that is not there is unlike everything.
    fn holds(&self, value: Option<&str>) -> bool {
        let is = |fits: &dyn Fn(&str) -> bool| value.is_some_and(fits);
        match self {
            Self::Is(text) => is(&|value| value == &**text),
            Self::IsNot(text) => !is(&|value| value == &**text),
            Self::Contains(text) => is(&|value| value.contains(&**text)),
            Self::StartsWith(text) => is(&|value| value.starts_with(&**text)),
            Self::EndsWith(text) => is(&|value| value.ends_with(&**text)),
            Self::In(texts) => is(&|value| texts.iter().any(|text| value == &**text)),
            Self::NotIn(texts) => !is(&|value| texts.iter().any(|text| value == &**text)),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn wants(&self, wanted: &'static str) -> SelectorError {
        SelectorError { at: self.at, wanted }
    }

    /// Between tokens, newlines are no blanks.
    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    /// Takes a token if it is next, and blanks behind it.
    fn take(&mut self, token: &str) -> bool {
        let next = self.rest().starts_with(token);
        if next {
            self.at += token.len();
            self.skip_blanks();
        }
        next
    }

    /// Takes a word of an operator, behind which no further character of a label is.
    fn take_word(&mut self, word: &str) -> bool {
        let behind = self.rest().strip_prefix(word);
        behind.is_some_and(|behind| !behind.starts_with(is_of_label)) && self.take(word)
    }

    fn or(&mut self, depth: usize) -> Result<Term, SelectorError> {
        let mut terms = vec![self.and(depth)?];
        while self.take("||") {
            terms.push(self.and(depth)?);
        }
        Ok(one_or(terms, Term::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Term, SelectorError> {
        let mut terms = vec![self.term(depth)?];
        while self.take("&&") {
            terms.push(self.term(depth)?);
        }
        Ok(one_or(terms, Term::And))
    }

    fn term(&mut self, depth: usize) -> Result<Term, SelectorError> {
        let mut negated = false;
        while self.rest().starts_with('!') && self.take("!") {
            negated = !negated;
        }
        let term = self.primary(depth)?;
        Ok(if negated { Term::Not(Box::new(term)) } else { term })
    }

    fn primary(&mut self, depth: usize) -> Result<Term, SelectorError> {
        if depth > DEEPEST {
            return Err(self.wants("nested less deeply"));
        }
        if self.take("(") {
            let term = self.or(depth + 1)?;
            return self.closed(term);
        }
        if self.take("all(") || self.take("global(") {
            return self.closed(Term::All);
        }
        if self.take("has(") {
            let label = self.label()?;
            return self.closed(Term::Has(label));
        }
        let label = self.label()?;
        Ok(Term::Compare(label, self.comparison()?))
    }

    fn closed(&mut self, term: Term) -> Result<Term, SelectorError> {
        if self.take(")") { Ok(term) } else { Err(self.wants("a closing parenthesis")) }
    }

    fn label(&mut self) -> Result<Box<str>, SelectorError> {
        let rest = self.rest();
        let end = rest.find(|character| !is_of_label(character)).unwrap_or(rest.len());
        if !(1..=LONGEST_LABEL).contains(&end) {
            return Err(self.wants("the name of a label"));
        }
        self.at += end;
        self.skip_blanks();
        Ok(rest[..end].into())
    }

    fn comparison(&mut self) -> Result<Comparison, SelectorError> {
        if self.take("==") {
            return self.string().map(Comparison::Is);
        }
        if self.take("!=") {
            return self.string().map(Comparison::IsNot);
        }
        if self.take_word("contains") {
            return self.string().map(Comparison::Contains);
        }
        if self.take_word("in") {
            return self.set().map(Comparison::In);
        }
        let start = self.at;
        for (first, second) in [("starts", "with"), ("ends", "with"), ("not", "in")] {
            // The two words may touch.
            if self.take(first) && self.take_word(second) {
                return match first {
                    "starts" => self.string().map(Comparison::StartsWith),
                    "ends" => self.string().map(Comparison::EndsWith),
                    _ => self.set().map(Comparison::NotIn),
                };
            }
            self.at = start;
        }
        Err(self.wants("a comparison: ==, !=, contains, starts with, ends with, in or not in"))
    }

    fn string(&mut self) -> Result<Box<str>, SelectorError> {
        let rest = self.rest();
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''));
        let Some(quote) = quote else { return Err(self.wants("a text in quotes")) };
        let Some(length) = rest[1..].find(quote) else { return Err(self.wants("a text that ends")) };
        self.at += length + 2;
        self.skip_blanks();
        Ok(rest[1..=length].into())
    }

    fn set(&mut self) -> Result<Vec<Box<str>>, SelectorError> {
        if !self.take("{") {
            return Err(self.wants("a set in braces"));
        }
        let mut texts = Vec::new();
        while !self.take("}") {
            texts.push(self.string()?);
            if !self.take(",") && !self.rest().starts_with('}') {
                return Err(self.wants("a comma or a closing brace"));
            }
        }
        Ok(texts)
    }
}

fn is_of_label(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '/' | '-')
}

fn one_or(mut terms: Vec<Term>, many: fn(Vec<Term>) -> Term) -> Term {
    match terms.pop() {
        Some(term) if terms.is_empty() => term,
        last => {
            terms.extend(last);
            many(terms)
        }
    }
}

#[cfg(test)]
#[path = "selector/tests.rs"]
mod tests;

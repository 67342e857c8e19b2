//! From documents to what people read. Pure: a document, the time and a width in, a page out.

mod chain;
mod circle;
mod header;
mod lists;
pub mod page;
pub mod table;
pub mod text;
pub mod time;
pub mod why;
pub mod words;

pub use header::certainty_word;
pub(crate) use header::later_cause;
pub use page::{Page, Paint, Span, Style};

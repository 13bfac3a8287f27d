//! Results as people and programs read them.
//!
//! [`table`] is for the terminal, [`json`] for programs (and for [`Args`], which reads it again), [`html`] is one page that
//! needs nothing else, [`hgrm`] the percentile text of HdrHistogram. [`page`], [`svg`] and [`columns`] are the
//! pieces, for whoever has other figures to show.

mod axis;
mod columns;
pub(crate) mod file;
mod hgrm;
mod html;
mod output;
mod page;
mod saved;
pub(crate) mod svg;
mod table;
pub(crate) mod units;

pub(crate) use columns::{Align, columns, wrapped};
pub(crate) use file::File;
pub(crate) use hgrm::hgrm;
pub(crate) use html::{environment, html};
pub(crate) use output::Output;
pub(crate) use page::{Html, Section, page};
pub(crate) use saved::{Args, run};
pub(crate) use table::table;

use crate::results::Results;

/// One JSON object, indented, with a line break at its end.
pub(crate) fn json(results: &Results) -> String {
    let text = serde_json::to_string_pretty(results).expect("strings, numbers and lists always have a JSON form");
    text + "\n"
}

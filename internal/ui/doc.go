// Package ui is the execution page: an overview of an execution for a step's author.
//
// A [Record] is the data of the page. The scripts in assets draw it in two places: [Report] writes one file with page
// and record, and [Handler] serves the same page for the records of a server, with a list and a scratch pad.
//
// Everything in a record may come from a step, or from a server that it called. Three measures prevent it from becoming
// markup: the scripts build elements and set text, never HTML; the document's policy allows only the scripts of this
// package and makes the browser refuse every HTML sink (require-trusted-types-for); and a report's record is JSON in
// which every "<" is escaped.
package ui

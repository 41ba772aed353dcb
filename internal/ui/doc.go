// Package ui is the page of an execution: what a step's author wants to see in ten seconds.
//
// A [Record] is all that the page knows. It is drawn by the scripts in assets, in two places: [Report] writes one file
// that holds page and record, and [Handler] serves the same page over the records of a server, with a list and a scratch
// pad.
//
// Everything in a record was written by a step, or by a server it called. Three things keep it from becoming markup: the
// scripts build elements and set text, never HTML; the policy of the document allows the scripts of this package alone and
// makes the browser refuse every HTML sink (require-trusted-types-for); and a report's record is JSON in which every "<" is
// escaped.
package ui

// Package executions follows executions from the moment they are asked for: they wait for a slot, run, and are kept for a
// while, so that whoever asked can look at them, watch them, cancel them, or ask for the same one again.
//
// A [Service] runs an id once, however often it is submitted, as long as it is kept. What is kept is bounded in number and
// in bytes: memory grows with neither callers nor time.
package executions

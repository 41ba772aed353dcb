package runner

import (
	"encoding/json"
	"errors"
	"sort"
	"strings"
)

// FieldErrors are the reasons a request was refused, keyed by the field they belong to. It marshals to the body that
// clients of the code runner understand, such as {"inputs": {"x": {"t": ["Invalid Kizen type 'mail'"]}}}.
// The zero value is an empty set, ready to use.
type FieldErrors struct {
	entries []fieldError
}

// nonField is the key of messages that belong to no field, as clients know it.
const nonField = "non_field_errors"

type fieldError struct {
	path    []string
	message string
}

// Add records one message under path, outermost field first. A message without a path is about the whole and
// marshals under "non_field_errors".
func (e *FieldErrors) Add(message string, path ...string) {
	e.entries = append(e.entries, fieldError{path: append([]string(nil), path...), message: message})
}

// Merge adds what err reports below prefix: every entry when err is a *FieldErrors, its text otherwise. A nil err adds
// nothing.
func (e *FieldErrors) Merge(err error, prefix ...string) {
	if err == nil {
		return
	}
	var fields *FieldErrors
	if !errors.As(err, &fields) {
		e.Add(err.Error(), prefix...)
		return
	}
	for _, entry := range fields.entries {
		e.Add(entry.message, append(append([]string(nil), prefix...), entry.path...)...)
	}
}

// Err returns e when it holds anything, and nil otherwise.
func (e *FieldErrors) Err() error {
	if e == nil || len(e.entries) == 0 {
		return nil
	}
	return e
}

// Error joins all lines with "; ".
func (e *FieldErrors) Error() string { return strings.Join(e.Lines(), "; ") }

// Lines returns one "field.field: message" line an entry, in the order they were found.
func (e *FieldErrors) Lines() []string {
	lines := make([]string, len(e.entries))
	for i, entry := range e.entries {
		lines[i] = entry.message
		if len(entry.path) > 0 {
			lines[i] = strings.Join(entry.path, ".") + ": " + entry.message
		}
	}
	return lines
}

// MarshalJSON writes the field-keyed body: objects by path, a list of messages at each leaf.
func (e *FieldErrors) MarshalJSON() ([]byte, error) {
	root := map[string]any{}
	entries := append([]fieldError(nil), e.entries...)
	// The deepest first: a message about a whole field then joins the object of its parts instead of replacing it.
	sort.SliceStable(entries, func(i, j int) bool { return len(entries[i].path) > len(entries[j].path) })
	for _, entry := range entries {
		path := entry.path
		if len(path) == 0 {
			path = []string{nonField}
		}
		node, last := root, len(path)-1
		for _, key := range path[:last] {
			child, ok := node[key].(map[string]any)
			if !ok {
				child = map[string]any{}
				node[key] = child
			}
			node = child
		}
		key := path[last]
		if child, ok := node[key].(map[string]any); ok {
			node, key = child, nonField
		}
		messages, _ := node[key].([]string)
		node[key] = append(messages, entry.message)
	}
	return json.Marshal(root)
}

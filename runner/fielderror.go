package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// FieldErrors are the reasons for which a request was refused, keyed by field. It marshals to the body that clients of
// the code runner understand, such as {"inputs": {"x": {"t": ["Invalid Kizen type 'mail'"]}}}. FieldErrors keeps at
// most 100 reasons, cuts long ones, and ends with a note if it dropped any. The zero value is an empty set, ready to
// use.
type FieldErrors struct {
	entries []fieldError
	more    bool // some were dropped
}

const (
	// nonField is the key of messages that belong to no field, as clients know it.
	nonField = "non_field_errors"
	// maxErrors is the maximal number of reasons, maxErrorText the maximal size in bytes of each text and each part of
	// a path.
	maxErrors    = 100
	maxErrorText = 1 << 10
)

type fieldError struct {
	path    []string
	message string
}

var moreErrors = fieldError{message: fmt.Sprintf("there are more errors than these %d", maxErrors)}

// Add records one message under path, outermost field first. A message without a path concerns the whole request and
// marshals under "non_field_errors".
func (e *FieldErrors) Add(message string, path ...string) {
	e.add(fieldError{message: cutString(message, maxErrorText)}, path)
}

func (e *FieldErrors) add(entry fieldError, prefix []string) {
	if len(e.entries) >= maxErrors {
		e.more = true
		return
	}
	path := make([]string, 0, len(prefix)+len(entry.path))
	for _, part := range prefix {
		path = append(path, cutString(part, maxErrorText))
	}
	entry.path = append(path, entry.path...)
	e.entries = append(e.entries, entry)
}

// Full reports whether further reasons would be dropped, so that the caller can stop looking for them.
func (e *FieldErrors) Full() bool { return len(e.entries) >= maxErrors }

// Merge adds err below prefix: every entry if err is a *FieldErrors, its text otherwise. A nil err adds nothing.
func (e *FieldErrors) Merge(err error, prefix ...string) {
	if err == nil {
		return
	}
	fields, ok := errors.AsType[*FieldErrors](err)
	if !ok {
		e.Add(err.Error(), prefix...)
		return
	}
	for _, entry := range fields.entries {
		e.add(entry, prefix)
	}
	e.more = e.more || fields.more
}

// Err returns e if it has entries, and nil otherwise.
func (e *FieldErrors) Err() error {
	if e == nil || len(e.entries) == 0 {
		return nil
	}
	return e
}

// all returns the entries, and a last one if some were dropped.
func (e *FieldErrors) all() []fieldError {
	if !e.more {
		return e.entries
	}
	return append(slices.Clip(e.entries), moreErrors)
}

// Error joins all lines with "; ".
func (e *FieldErrors) Error() string { return strings.Join(e.Lines(), "; ") }

// Lines returns one "field.field: message" line for each entry, in the order in which they were added.
func (e *FieldErrors) Lines() []string {
	entries := e.all()
	lines := make([]string, len(entries))
	for i, entry := range entries {
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
	entries := slices.Clone(e.all())
	// Deepest first, so that a message about a whole field joins the object of its parts instead of replacing it.
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

package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Value is one typed value in its wire form: {"t": code, "v": value}. V is nil for null, otherwise the normal form of
// its type: numbers as the string of their digits, booleans as bool, dates and datetimes in ISO 8601 with "T" and a
// numeric offset, UUIDs in lower case, files and options as objects, lists as []Value, typed arrays as []any.
type Value struct {
	Type Type `json:"t"`
	V    any  `json:"v"`
}

// reader reads the values of one document.
type reader struct {
	elements int // of all lists so far
	depth    int // of the list that is being read
}

// typed checks v, as encoding/json decodes it with UseNumber, against t and converts it to wire form. Errors inside
// lists and objects are *FieldErrors keyed by position.
func (r *reader) typed(t Type, v any) (Value, error) {
	normal, err := r.normalise(t, v)
	if err != nil {
		return Value{}, err
	}
	return Value{Type: t, V: normal}, nil
}

// wire reads {"t": code, "v": value}.
func (r *reader) wire(raw map[string]any) (Value, error) {
	var errs FieldErrors
	code, ok := raw["t"].(string)
	if !ok {
		errs.Add("must be the code of a data type", "t")
		return Value{}, errs.Err()
	}
	t, err := parseCode(code)
	if err != nil {
		errs.Merge(err, "t")
		return Value{}, errs.Err()
	}
	v, given := raw["v"]
	if !given {
		errs.Add("this field is required", "v")
		return Value{}, errs.Err()
	}
	value, err := r.typed(t, v)
	errs.Merge(err, "v")
	return value, errs.Err()
}

// isWire reports whether an object is {"t", "v"} and nothing else.
func isWire(object map[string]any) bool {
	_, hasT := object["t"]
	_, hasV := object["v"]
	return hasT && (len(object) == 1 || hasV && len(object) == 2)
}

// infer gives a bare value the type that follows from its JSON.
func (r *reader) infer(v any) (Value, error) {
	switch v := v.(type) {
	case nil, string:
		return Value{Type: typeString, V: v}, nil
	case json.Number:
		return r.typed(typeNumber, v)
	case bool:
		return Value{Type: typeBoolean, V: v}, nil
	case []any:
		items, err := r.inferList(v)
		if err != nil {
			return Value{}, err
		}
		return Value{Type: typeList, V: items}, nil
	case map[string]any:
		if isWire(v) {
			return r.wire(v)
		}
	}
	return Value{}, errors.New(`an object needs its type: write {"type": ..., "value": ...}`)
}

func (r *reader) inferList(items []any) ([]Value, error) { return eachItem(r, items, r.infer) }

// wireList reads a list whose elements must name their types.
func (r *reader) wireList(items []any) ([]Value, error) {
	return eachItem(r, items, func(item any) (Value, error) {
		object, ok := item.(map[string]any)
		if !ok {
			return Value{}, errors.New(`must be {"t": code, "v": value}`)
		}
		return r.wire(object)
	})
}

// eachItem reads the elements of a list, until the maximum number of errors is reached.
func eachItem[T any](r *reader, items []any, read func(any) (T, error)) ([]T, error) {
	if r.depth >= maxNesting {
		return nil, fmt.Errorf("lists nest deeper than %d", maxNesting)
	}
	if r.elements += len(items); r.elements > maxElements {
		return nil, errTooManyElements
	}
	r.depth++
	defer func() { r.depth-- }()
	var errs FieldErrors
	list := make([]T, len(items))
	for i, item := range items {
		value, err := read(item)
		errs.Merge(err, strconv.Itoa(i))
		if errs.Full() {
			errs.more = errs.more || i+1 < len(items)
			break
		}
		list[i] = value
	}
	return list, errs.Err()
}

var errTooManyElements = fmt.Errorf("lists must have at most %d elements together", maxElements)

func (r *reader) normalise(t Type, v any) (any, error) {
	if v == nil {
		return nil, nil
	}
	if element, ok := t.Element(); ok {
		items, _, err := listOf(v)
		if err != nil {
			return nil, fmt.Errorf("must be a list of %s values%w", element, err)
		}
		return eachItem(r, items, func(item any) (any, error) { return r.normalise(element, item) })
	}
	switch {
	case t == typeString, t == typeEmail:
		return asText(v)
	case t == typeNumber:
		return normaliseNumber(v)
	case t == typeBoolean:
		if _, ok := v.(bool); ok {
			return v, nil
		}
		return fromText(v, parseBoolean, "must be true or false")
	case t == typeList:
		items, written, err := listOf(v)
		switch {
		case err != nil:
			return nil, fmt.Errorf("must be a list%w", err)
		case written:
			return r.inferList(items)
		}
		return r.wireList(items)
	case t == typeFile:
		return normaliseFile(v)
	case t.isOption():
		return normaliseOption(v)
	case t == typeDate:
		return fromText(v, parseDate, "must be a string")
	case t == typeDatetime:
		return fromText(v, parseDatetime, "must be a string")
	case t == typePhone:
		return fromText(v, parsePhone, "must be a string")
	}
	return fromText(v, parseUUID, "must be a string")
}

// listOf returns the elements of a list. written reports that the list was sent as JSON text, as some clients do. The
// error continues a sentence that says which list is required.
func listOf(v any) (items []any, written bool, err error) {
	if items, ok := v.([]any); ok {
		return items, false, nil
	}
	text, ok := v.(string)
	if !ok || !strings.HasPrefix(strings.Trim(text, ignored), "[") {
		return nil, false, fmt.Errorf(", not %s", describe(v))
	}
	if err := decodeStrict([]byte(text), &items); err != nil {
		return nil, false, fmt.Errorf(", and this text is no JSON: %w", err)
	}
	return items, true, nil
}

// fromText parses a text by the grammar of its type; wanted is the error for any other value.
func fromText[T any](v any, parse func(string) (T, error), wanted string) (any, error) {
	text, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("%s, not %s", wanted, describe(v))
	}
	normal, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w, not %s", err, describe(v))
	}
	return normal, nil
}

// asText reads a text. It converts other scalars, because some clients do not know types.
func asText(v any) (any, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return nil, fmt.Errorf("must be a string, not %s", describe(v))
}

func normaliseNumber(v any) (any, error) {
	if number, ok := v.(json.Number); ok {
		v = number.String()
	}
	return fromText(v, parseNumber, "must be a number")
}

// A field is a part of a file's or an option's object.
type field struct {
	name string
	read func(any) (any, error)
	// wrong is the error for a value that cannot be read.
	wrong string
	// needed means that the field is required.
	needed bool
}

var fileFields = []field{
	{name: "id", read: asText, wrong: "must be a string"},
	{name: "url", read: fileURL, wrong: "must be the file's presigned URL", needed: true},
	{name: "name", read: asText, wrong: "must be a string"},
	{name: "size", read: asJSONNumber, wrong: "must be a number of bytes"},
	{name: "content_type", read: asText, wrong: "must be a string"},
}

var optionFields = []field{
	{name: "id", read: optionID, wrong: "must be the option's UUID", needed: true},
	{name: "name", read: asText, wrong: "must be a string"},
	{name: "order", read: asJSONNumber, wrong: "must be a number"},
	{name: "code", read: asText, wrong: "must be a string"},
	{name: "status", read: stageStatus, wrong: "must be open, won or lost"},
	{name: "percentage_chance_to_close", read: asJSONNumber, wrong: "must be a number"},
}

var errUnfit = errors.New("does not fit")

func fileURL(v any) (any, error) {
	if url, ok := v.(string); !ok || url == "" {
		return nil, errUnfit
	}
	return v, nil
}

func optionID(v any) (any, error) { return fromText(v, parseUUID, "") }

func stageStatus(v any) (any, error) {
	if v != "open" && v != "won" && v != "lost" {
		return nil, errUnfit
	}
	return v, nil
}

func asJSONNumber(v any) (any, error) {
	normal, err := normaliseNumber(v)
	if err != nil {
		return nil, err
	}
	return json.Number(normal.(string)), nil
}

// readFields checks the fields of an object and drops unknown ones.
func readFields(object map[string]any, fields []field) (any, error) {
	var errs FieldErrors
	kept := make(map[string]any, len(fields))
	for _, f := range fields {
		v, given := object[f.name]
		if v == nil && !f.needed {
			if given {
				kept[f.name] = nil
			}
			continue
		}
		normal, err := f.read(v)
		if err != nil {
			errs.Add(f.wrong, f.name)
			continue
		}
		kept[f.name] = normal
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return kept, nil
}

// normaliseFile reads a file's object, which may also be JSON text.
func normaliseFile(v any) (any, error) {
	object, ok := objectOf(v)
	if ok {
		return readFields(object, fileFields)
	}
	const form = `{"url": ..., "name": ..., "size": ..., "content_type": ...}`
	if text, ok := v.(string); ok {
		if _, err := parseUUID(text); err == nil {
			return nil,
				fmt.Errorf("is only the file's id %s, which does not locate the file; send the file's object with its presigned url, %s",
					describe(v), form)
		}
	}
	return nil, fmt.Errorf("must be a file's object with its presigned url, %s, not %s", form, describe(v))
}

// normaliseOption reads a field option or a stage; both may also be just the option's UUID.
func normaliseOption(v any) (any, error) {
	object, ok := objectOf(v)
	if id, isText := v.(string); !ok && isText {
		object, ok = map[string]any{"id": id}, true
	}
	if !ok {
		return nil, fmt.Errorf("must be an option's object with its id, not %s", describe(v))
	}
	return readFields(object, optionFields)
}

// objectOf returns an object, which may also be JSON text.
func objectOf(v any) (map[string]any, bool) {
	if object, ok := v.(map[string]any); ok {
		return object, true
	}
	var object map[string]any
	text, ok := v.(string)
	ok = ok && strings.HasPrefix(strings.Trim(text, ignored), "{") && decodeStrict([]byte(text), &object) == nil
	return object, ok
}

// describe names a refused value in a form that people recognise, without repeating a long one.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return strconv.Quote(ellipsis(v, 40))
	case json.Number:
		return "the number " + cutString(v.String(), 40)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "a list"
	}
	return "an object"
}

// ellipsis keeps the first n characters of s.
func ellipsis(s string, n int) string {
	for at := range s {
		if n--; n < 0 {
			return s[:at] + "…"
		}
	}
	return s
}

func cutString(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Value is one typed value as it travels: {"t": code, "v": value}. V is nil for null, otherwise in the one form that
// is sent for its type: numbers as the string of their digits, booleans as bool, dates and datetimes in ISO 8601 with
// "T" and a numeric offset, UUIDs in lower case, files and options as objects, lists as []Value, typed arrays as []any.
type Value struct {
	Type Type `json:"t"`
	V    any  `json:"v"`
}

// NewValue checks v, as encoding/json decodes it with UseNumber, against t and brings it into the form of the wire.
// Mistakes inside lists and objects are *FieldErrors keyed by their place.
func NewValue(t Type, v any) (Value, error) {
	normal, err := normalise(t, v, 0)
	if err != nil {
		return Value{}, err
	}
	return Value{Type: t, V: normal}, nil
}

// parseWire reads {"t": code, "v": value}.
func parseWire(raw map[string]any, depth int) (Value, error) {
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
	normal, err := normalise(t, v, depth)
	if err != nil {
		errs.Merge(err, "v")
		return Value{}, errs.Err()
	}
	return Value{Type: t, V: normal}, nil
}

// isWire reports whether an object is {"t", "v"} and nothing else.
func isWire(object map[string]any) bool {
	_, hasT := object["t"]
	_, hasV := object["v"]
	return hasT && (len(object) == 1 || hasV && len(object) == 2)
}

// infer types a bare value by what it is in JSON.
func infer(v any, depth int) (Value, error) {
	switch v := v.(type) {
	case nil, string:
		return Value{Type: typeString, V: v}, nil
	case json.Number:
		normal, err := normalise(typeNumber, v, depth)
		return Value{Type: typeNumber, V: normal}, err
	case bool:
		return Value{Type: typeBoolean, V: v}, nil
	case []any:
		items, err := inferList(v, depth)
		if err != nil {
			return Value{}, err
		}
		return Value{Type: typeList, V: items}, nil
	case map[string]any:
		if isWire(v) {
			return parseWire(v, depth)
		}
	}
	return Value{}, errors.New(`an object needs its type: write {"type": ..., "value": ...}`)
}

func inferList(items []any, depth int) ([]Value, error) {
	return eachItem(items, depth, infer)
}

// wireList reads a list whose elements must name their types.
func wireList(items []any, depth int) ([]Value, error) {
	return eachItem(items, depth, func(item any, depth int) (Value, error) {
		object, ok := item.(map[string]any)
		if !ok {
			return Value{}, errors.New(`must be {"t": code, "v": value}`)
		}
		return parseWire(object, depth)
	})
}

func eachItem[T any](items []any, depth int, read func(any, int) (T, error)) ([]T, error) {
	if depth >= maxNesting {
		return nil, fmt.Errorf("lists nest deeper than %d", maxNesting)
	}
	var errs FieldErrors
	read2 := make([]T, len(items))
	for i, item := range items {
		value, err := read(item, depth+1)
		errs.Merge(err, strconv.Itoa(i))
		read2[i] = value
	}
	return read2, errs.Err()
}

var (
	numberText   = regexp.MustCompile(`^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$`)
	integerText  = regexp.MustCompile(`^[+-]?\d+$`)
	dateText     = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}$`)
	datetimeText = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(:\d{2})?([.,]\d+)?(Z|z|[+-]\d{2}(?::?\d{2})?)?$`)
	phoneText    = regexp.MustCompile(`^\+[1-9]\d{1,14}$`)
	uuidText     = regexp.MustCompile(`^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$`)
)

// maxDigits is the longest integer CPython converts from text by default.
const maxDigits = 4300

func normalise(t Type, v any, depth int) (any, error) {
	if v == nil {
		return nil, nil
	}
	if element, ok := t.Element(); ok {
		items, isList := v.([]any)
		if !isList {
			return nil, fmt.Errorf("must be a list of %s values, not %s", element, describe(v))
		}
		return eachItem(items, depth, func(item any, depth int) (any, error) { return normalise(element, item, depth) })
	}
	switch {
	case t == typeBoolean:
		return normaliseBoolean(v)
	case t == typeNumber:
		return normaliseNumber(v)
	case t == typeList:
		items, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("must be a list, not %s", describe(v))
		}
		return wireList(items, depth)
	case t == typeFile:
		return normaliseFile(v)
	case t.isOption():
		return normaliseOption(v)
	}
	text, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("must be a string, not %s", describe(v))
	}
	return normaliseText(t, text)
}

func normaliseText(t Type, text string) (any, error) {
	switch {
	case t == typeDate:
		return text, checkDate(text)
	case t == typeDatetime:
		return normaliseDatetime(text)
	case t == typePhone && !phoneText.MatchString(text):
		return nil, fmt.Errorf("must be a phone number in E.164, like +13125550142, not %s", describe(text))
	case t == typeUUID || t.isEntity():
		if !uuidText.MatchString(text) {
			return nil, fmt.Errorf("must be a UUID, not %s", describe(text))
		}
		return strings.ToLower(text), nil
	}
	return text, nil
}

func normaliseBoolean(v any) (any, error) {
	switch v {
	case true, "true":
		return true, nil
	case false, "false":
		return false, nil
	}
	return nil, fmt.Errorf("must be true or false, not %s", describe(v))
}

func normaliseNumber(v any) (any, error) {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = strings.TrimSpace(v)
	}
	if !numberText.MatchString(text) {
		return nil, fmt.Errorf("must be a number, not %s", describe(v))
	}
	if len(text) > maxDigits {
		return nil, fmt.Errorf("must have at most %d digits", maxDigits)
	}
	if !integerText.MatchString(text) {
		if f, err := strconv.ParseFloat(text, 64); err != nil || math.IsInf(f, 0) {
			return nil, fmt.Errorf("is beyond what a float holds: %s", describe(v))
		}
	}
	return text, nil
}

func checkDate(text string) error {
	day, err := time.Parse(time.DateOnly, text)
	if err != nil || !dateText.MatchString(text) || day.Year() == 0 {
		return fmt.Errorf("must be a date as YYYY-MM-DD, not %s", describe(text))
	}
	return nil
}

// normaliseDatetime keeps the wall clock and the offset as written, and drops digits below the microsecond, which
// Python's datetime cannot hold.
func normaliseDatetime(text string) (any, error) {
	wrong := fmt.Errorf("must be a datetime in ISO 8601, like 2026-01-01T12:00:00Z, not %s", describe(text))
	m := datetimeText.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil || checkDate(m[1]) != nil {
		return nil, wrong
	}
	seconds, fraction, offset := m[3], m[4], m[5]
	if seconds == "" {
		if fraction != "" {
			return nil, wrong
		}
		seconds = ":00"
	}
	if _, err := time.Parse(time.TimeOnly, m[2]+seconds); err != nil {
		return nil, wrong
	}
	if fraction != "" {
		fraction = "." + fraction[1:min(len(fraction), 7)]
	}
	switch {
	case offset == "":
	case offset == "Z" || offset == "z":
		offset = "+00:00"
	default:
		digits := strings.ReplaceAll(offset[1:], ":", "") + "00"
		offset = offset[:1] + digits[:2] + ":" + digits[2:4]
		if _, err := time.Parse("15:04", offset[1:]); err != nil {
			return nil, wrong
		}
	}
	return m[1] + "T" + m[2] + seconds + fraction + offset, nil
}

func normaliseFile(v any) (any, error) {
	object, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("must be a file's object with its url, not %s", describe(v))
	}
	var errs FieldErrors
	if url, ok := object["url"].(string); !ok || url == "" {
		errs.Add("must be the file's presigned URL", "url")
	}
	checkField(&errs, object, "name", isString, "must be a string")
	checkField(&errs, object, "size", isNumber, "must be a number of bytes")
	checkField(&errs, object, "content_type", isString, "must be a string")
	return object, errs.Err()
}

// normaliseOption reads a field option or a stage; both are also written as the option's UUID alone.
func normaliseOption(v any) (any, error) {
	if id, ok := v.(string); ok {
		v = map[string]any{"id": id}
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("must be an option's object with its id, not %s", describe(v))
	}
	var errs FieldErrors
	if id, ok := object["id"].(string); !ok || !uuidText.MatchString(id) {
		errs.Add("must be the option's UUID", "id")
	}
	checkField(&errs, object, "name", isString, "must be a string")
	checkField(&errs, object, "order", isNumber, "must be a number")
	checkField(&errs, object, "code", isString, "must be a string")
	checkField(&errs, object, "status", isStageStatus, "must be open, won or lost")
	checkField(&errs, object, "percentage_chance_to_close", isNumber, "must be a number")
	return object, errs.Err()
}

func checkField(errs *FieldErrors, object map[string]any, name string, fits func(any) bool, message string) {
	if v := object[name]; v != nil && !fits(v) {
		errs.Add(message, name)
	}
}

func isString(v any) bool { _, ok := v.(string); return ok }

func isNumber(v any) bool { _, err := normaliseNumber(v); return err == nil }

func isStageStatus(v any) bool { return v == "open" || v == "won" || v == "lost" }

// describe names a refused value so that a person recognises it, without repeating a long one.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		if utf8.RuneCountInString(v) > 40 {
			v = string([]rune(v)[:40]) + "…"
		}
		return strconv.Quote(v)
	case json.Number:
		return "the number " + cutString(v.String(), 40)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "a list"
	}
	return "an object"
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

package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
)

const (
	// valuesPerElement says how many values one JSON document may hold, each object, list, text and number counted, for each
	// element that its lists may have: decoded, a value takes many times the bytes that it takes in the document. An element that
	// is a file has nearly as many.
	valuesPerElement = 10
	// maxDepth is how deep objects and lists nest: each level of a list is both.
	maxDepth = 2*maxNesting + 16
	// MaxNames is how many inputs, outputs or secrets one step may have, and how many members one object.
	MaxNames = 1000
)

// CheckJSON refuses a document that would cost much to decode, before that is done: one whose lists have more elements
// together than maxElements, whose objects have too many members, or that nests too deep. It also refuses half of a surrogate
// pair, which encoding/json would silently replace by another character. Whether the document is JSON is left to the decoder.
func CheckJSON(data []byte, maxElements int) error {
	type container struct {
		list    bool
		members int
	}
	open := make([]container, 1, maxDepth+1)
	values, elements := 0, 0
	count := func() error {
		in := &open[len(open)-1]
		values++
		if in.list {
			elements++
		} else {
			in.members++
		}
		switch {
		case elements > maxElements:
			return fmt.Errorf("its lists have more than %d elements together", maxElements)
		case in.members > MaxNames:
			return fmt.Errorf("an object in it has more than %d members", MaxNames)
		case values > valuesPerElement*maxElements:
			return fmt.Errorf("it has more than %d values", valuesPerElement*maxElements)
		}
		return nil
	}
	for i := 0; i < len(data); i++ {
		var err error
		switch data[i] {
		case '[', '{':
			if len(open) > maxDepth {
				return fmt.Errorf("it nests deeper than %d", maxDepth)
			}
			open = append(open, container{list: data[i] == '['})
			if rest := bytes.TrimLeft(data[i+1:min(i+64, len(data))], ignored); len(rest) == 0 || rest[0] != ']' {
				err = count()
			}
		case ']', '}':
			open = open[:max(1, len(open)-1)]
		case ',':
			err = count()
		case '"':
			i, err = skipText(data, i+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errHalfPair = errors.New("a text in it has half of a surrogate pair")

// skipText returns where the quote is that ends the text that begins at i.
func skipText(data []byte, i int) (int, error) {
	for ; i < len(data) && data[i] != '"'; i++ {
		if data[i] != '\\' {
			continue
		}
		i++
		first, ok := escapedUnit(data, i)
		if !ok || !utf16.IsSurrogate(first) {
			continue
		}
		second, ok := rune(0), i+5 < len(data) && data[i+5] == '\\'
		if ok {
			second, ok = escapedUnit(data, i+6)
		}
		if !ok || utf16.DecodeRune(first, second) == '\uFFFD' {
			return 0, errHalfPair
		}
		i += 10
	}
	return i, nil
}

// escapedUnit reads the four digits of an escape whose u is at i.
func escapedUnit(data []byte, i int) (rune, bool) {
	if i+5 > len(data) || data[i] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(data[i+1:i+5]), 16, 16)
	return rune(unit), err == nil
}

// decodeStrict decodes exactly one JSON value and keeps numbers as they are written.
func decodeStrict(data []byte, into any) error {
	if err := CheckJSON(data, maxElements); err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the first value")
	}
	return nil
}

// keysInOrder lists the keys of a JSON object that is known to be well formed, each once.
func keysInOrder(data []byte) []string {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var keys []string
	seen := map[string]bool{}
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return keys
		}
		if key := token.(string); !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
		var skipped json.RawMessage
		if err := decoder.Decode(&skipped); err != nil {
			return keys
		}
	}
	return keys
}

package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	// valuesPerElement is the maximal number of values (objects, lists, texts and numbers) in a JSON document per
	// allowed list element, because a decoded value takes many times its size in the document. A file element has
	// nearly as many.
	valuesPerElement = 10
	// maxDepth is the maximal nesting of objects and lists: each level of a list is one of both.
	maxDepth = 2*maxNesting + 16
	// MaxNames is the maximal number of inputs, outputs or secrets of a step, and of members of an object.
	MaxNames = 1000
)

// CheckJSON rejects a document that would be expensive to decode: with more than maxElements list elements in total,
// too many members in an object, or too deep nesting. It rejects an object that has a key twice. It also rejects half
// of a surrogate pair, which encoding/json would silently replace. It does not check whether the document is valid
// JSON; the decoder does.
func CheckJSON(data []byte, maxElements int) error {
	type container struct {
		list    bool
		members int
		keys    keySet
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
			begin := i
			i, err = skipText(data, i+1)
			if in := &open[len(open)-1]; err == nil && !in.list && in.members > 0 && i < len(data) && isKey(data[i+1:]) {
				err = in.keys.add(data[begin : i+1])
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isKey reports whether the text that ended before rest is the key of a member.
func isKey(rest []byte) bool {
	rest = bytes.TrimLeft(rest, ignored)
	return len(rest) > 0 && rest[0] == ':'
}

// keySet holds the keys of an object. Most objects have a few.
type keySet struct {
	few  [4]string
	n    int
	many map[string]bool
}

// add adds a key, a JSON string. It returns an error if the object already has the key, because decoders differ in
// which of the two values they use.
func (s *keySet) add(text []byte) error {
	key := string(text[1 : len(text)-1])
	if strings.Contains(key, `\`) && json.Unmarshal(text, &key) != nil {
		return nil // the decoder says what is wrong
	}
	if slices.Contains(s.few[:min(s.n, len(s.few))], key) || s.many[key] {
		return fmt.Errorf("the key %s is given twice", describe(key))
	}
	if s.n < len(s.few) {
		s.few[s.n] = key
	} else {
		if s.many == nil {
			s.many = map[string]bool{}
		}
		s.many[key] = true
	}
	s.n++
	return nil
}

var errHalfPair = errors.New("a text in it has half of a surrogate pair")

// skipText returns the index of the closing quote of the string that begins at i.
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

// largeDocument is the size in bytes from which documents are decoded in turns; decoders is the number of turns. A
// list of values takes 20 times its size while it is decoded, so without turns, callers and steps could use any amount
// of memory together.
const (
	largeDocument = 64 << 10
	decoders      = 2
)

var turns = make(chan struct{}, decoders)

// takeTurn waits until a document of size bytes may be decoded. The caller must call done when it holds only the
// result.
func takeTurn(size int) (done func()) {
	if size < largeDocument {
		return func() {}
	}
	turns <- struct{}{}
	return func() { <-turns }
}

// decodeStrict decodes exactly one JSON value and keeps the spelling of numbers.
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

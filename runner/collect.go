package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// collector gathers the contents of a step's frames, within the limits of the contract, whatever the harness sends.
type collector struct {
	execution Execution
	redact    redactor

	logs     []string
	logTimes []time.Time
	logBytes int
	dropped  Dropped

	entries   []HTTPEntry
	places    map[entryKey]int // index of a call in entries
	recorded  int              // bytes of entries
	full      bool             // recorded has reached its limit
	notLogged int64

	result *message
}

// entryKey identifies a call of one execution.
type entryKey struct {
	process string
	index   int
}

func newCollector(e Execution) *collector {
	return &collector{
		execution: e, redact: newRedactor(e), places: map[entryKey]int{},
	}
}

// add processes one event with the job's nonce.
func (c *collector) add(m message) {
	switch m.Kind {
	case kindLog:
		c.addLog(m.Log, m.LogCut)
	case kindLogsDropped:
		c.dropped.Messages = addCount(c.dropped.Messages, m.Dropped)
	case kindHTTP:
		if m.Entry != nil {
			c.addEntry(entryKey{cutString(m.Process, maxProcessName), m.Index}, *m.Entry)
		}
	case kindHTTPDropped:
		c.notLogged = addCount(c.notLogged, m.Dropped)
	}
}

func (c *collector) addLog(text string, alreadyCut int64) {
	kept := c.redact.cut(text, maxLogMessage)
	c.dropped.Bytes = addCount(c.dropped.Bytes, alreadyCut)
	c.dropped.Bytes = addCount(c.dropped.Bytes, int64(len(text)-maxLogMessage))
	// An empty message takes space too.
	size := max(1, len(kept))
	if c.logBytes+size > maxLogTotal {
		c.dropped.Messages++
		c.dropped.Bytes = addCount(c.dropped.Bytes, int64(len(kept)))
		return
	}
	c.logBytes += size
	c.logs, c.logTimes = append(c.logs, kept), append(c.logTimes, time.Now())
	if c.execution.Observer != nil {
		c.execution.Observer.Log(kept)
	}
}

func (c *collector) addEntry(key entryKey, e HTTPEntry) {
	place, known := c.places[key]
	if !known && (c.full || len(c.entries) == maxRequests) {
		if e.Duration == nil { // the first of the entries of this call
			c.notLogged++
		}
		return
	}
	e = c.bound(e)
	size := e.size()
	var before HTTPEntry
	if known {
		before = c.entries[place]
		size -= before.size()
	}
	if before.answered() && !e.answered() {
		return // the harness never withdraws a response
	}
	if c.recorded+size > maxRecord {
		c.full = true
		if !known {
			c.notLogged++
			return
		}
		status, failure, duration := e.ResponseStatusCode, e.RequestErrorType, e.Duration
		e, size = before, 0
		e.ResponseStatusCode, e.RequestErrorType, e.Duration = status, failure, duration
	}
	c.recorded += size
	if known {
		c.entries[place] = e
	} else {
		c.places[key] = len(c.entries)
		c.entries = append(c.entries, e)
	}
	if c.execution.Observer != nil && e.answered() && !before.answered() {
		c.execution.Observer.HTTP(e)
	}
}

// fill writes the step's source, inputs, logs and HTTP record into a result.
func (c *collector) fill(result *Result) {
	result.Source, result.Inputs = c.execution.Shown()
	result.Logs, result.LogTimes = c.logs, c.logTimes
	result.Dropped = c.dropped
	result.HTTP = &HTTPRecord{
		Count: int64(len(c.entries)) + c.notLogged, NotLogged: c.notLogged, Requests: append([]HTTPEntry{}, c.entries...),
	}
}

// values reads the outputs of a successful result, exactly as the step assigned them, and checks each against its
// declaration.
func (c *collector) values() ([]NamedValue, error) {
	declared := make(map[string]bool, len(c.execution.Outputs))
	for _, output := range c.execution.Outputs {
		declared[output.Name] = true
	}
	for _, name := range sortedKeys(c.result.Values) {
		if !declared[name] {
			return nil, fmt.Errorf("output %s is not declared", describe(name))
		}
	}
	values := []NamedValue{}
	for _, output := range c.execution.Outputs {
		raw, assigned := c.result.Values[output.Name]
		if !assigned {
			continue
		}
		if c.redact.holdsKey(raw) {
			return nil, fmt.Errorf("output %q contains the key of this execution, which a step must not pass on", output.Name)
		}
		value, err := readOutput(output, raw)
		if err != nil {
			return nil, fmt.Errorf("output %q: %w", output.Name, err)
		}
		values = append(values, NamedValue{Name: output.Name, JSON: value})
	}
	return values, nil
}

// readOutput returns a checked output in its wire form.
func readOutput(output Parameter, raw json.RawMessage) (json.RawMessage, error) {
	defer takeTurn(len(raw))()
	value, err := readValue(raw)
	if err != nil {
		return nil, err
	}
	if value.Type != output.Type {
		return nil, errors.New("is not of its declared type")
	}
	return marshal(value)
}

func readValue(raw json.RawMessage) (Value, error) {
	var object map[string]any
	if err := decodeStrict(raw, &object); err != nil {
		return Value{}, err
	}
	return new(reader).wire(object)
}

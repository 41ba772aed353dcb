package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// collector gathers what a step's frames say, within the caps of the contract whatever the harness sends.
type collector struct {
	execution Execution
	redact    redactor

	logs     []string
	logTimes []time.Time
	logBytes int
	dropped  Dropped

	entries   []HTTPEntry
	places    map[entryKey]int // where in entries a call is
	notLogged int64

	result *message
}

// entryKey tells the calls of one execution apart.
type entryKey struct {
	process string
	index   int
}

func newCollector(e Execution) *collector {
	return &collector{
		execution: e, redact: newRedactor(e.Secrets, e.APIURL, e.APIRoot), places: map[entryKey]int{},
	}
}

// add takes one event that carried the job's nonce.
func (c *collector) add(m message) {
	switch m.Kind {
	case kindLog:
		c.addLog(m.Log, m.LogCut)
	case kindLogsDropped:
		c.dropped.Messages = addCount(c.dropped.Messages, m.Dropped)
	case kindHTTP:
		if m.Entry != nil {
			c.addEntry(entryKey{m.Process, m.Index}, *m.Entry)
		}
	case kindHTTPDropped:
		c.notLogged = addCount(c.notLogged, m.Dropped)
	}
}

// addCount adds what a process of the step says it dropped, whatever that is.
func addCount(sum, more int64) int64 {
	const most = 1 << 40
	return min(sum+min(max(more, 0), most), most)
}

func (c *collector) addLog(text string, alreadyCut int64) {
	text = c.redact.text(text)
	kept := cutString(text, maxLogMessage)
	c.dropped.Bytes += alreadyCut + int64(len(text)-len(kept))
	// An empty message takes room as well.
	size := max(1, len(kept))
	if c.logBytes+size > maxLogTotal {
		c.dropped.Messages++
		c.dropped.Bytes += int64(len(kept))
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
	if !known && len(c.entries) == maxRequests {
		if e.Duration == nil { // the first of the entries of this call
			c.notLogged++
		}
		return
	}
	e.Method = cutString(c.redact.text(e.Method), 32)
	e.URL = cutString(c.redact.text(e.URL), maxRequestBody)
	e.Headers = c.cutHeaders(e.Headers)
	e.ResponseHeaders = c.cutHeaders(e.ResponseHeaders)
	e.Body = cutPointer(c.redact.pointer(e.Body), maxRequestBody)
	e.ResponseBody = cutPointer(c.redact.pointer(e.ResponseBody), maxResponseBody)
	e.RequestErrorType = cutPointer(c.redact.pointer(e.RequestErrorType), 256)
	e.RequestSubmittedAt = cutString(e.RequestSubmittedAt, 64)
	answered := known && c.entries[place].answered()
	if known {
		c.entries[place] = e
	} else {
		c.places[key] = len(c.entries)
		c.entries = append(c.entries, e)
	}
	if c.execution.Observer != nil && e.answered() && !answered {
		c.execution.Observer.HTTP(e)
	}
}

// maxHeaders is how many bytes of one message's header fields are kept.
const maxHeaders = 16 << 10

func (c *collector) cutHeaders(headers map[string]string) map[string]string {
	size := 0
	for _, name := range sortedKeys(headers) {
		size += len(name) + len(headers[name])
		if size > maxHeaders {
			delete(headers, name)
		}
	}
	return c.redact.headers(headers)
}

func cutPointer(s *string, n int) *string {
	if s == nil {
		return nil
	}
	cut := cutString(*s, n)
	return &cut
}

// fill writes what the step was given, its logs and the HTTP record into a result.
func (c *collector) fill(result *Result) {
	result.Source, result.Inputs = c.execution.Shown()
	result.Logs, result.LogTimes = c.logs, c.logTimes
	result.Dropped = c.dropped
	result.HTTP = &HTTPRecord{
		Count: int64(len(c.entries)) + c.notLogged, NotLogged: c.notLogged, Requests: append([]HTTPEntry{}, c.entries...),
	}
}

// values reads the outputs of a successful result and checks each against its declaration.
func (c *collector) values() ([]NamedValue, error) {
	for _, name := range sortedKeys(c.result.Values) {
		if _, declared := find(c.execution.Outputs, name); !declared {
			return nil, fmt.Errorf("output %s is not declared", describe(name))
		}
	}
	values := []NamedValue{}
	for _, output := range c.execution.Outputs {
		raw, assigned := c.result.Values[output.Name]
		if !assigned {
			continue
		}
		value, err := readOutput(output, raw)
		if err != nil {
			return nil, fmt.Errorf("output %q: %w", output.Name, err)
		}
		values = append(values, NamedValue{Name: output.Name, Value: c.redact.value(value)})
	}
	return values, nil
}

func readOutput(output Parameter, raw json.RawMessage) (Value, error) {
	var object map[string]any
	if err := decodeStrict(raw, &object); err != nil {
		return Value{}, err
	}
	value, err := new(reader).wire(object)
	if err != nil {
		return Value{}, err
	}
	if value.Type != output.Type {
		return Value{}, errors.New("is not of its declared type")
	}
	return value, nil
}

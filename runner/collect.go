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

	logs      []string
	logTimes  []time.Time
	logBytes  int
	dropped   Dropped
	droppedBy int64 // messages the harness says it dropped itself

	entries        map[int]HTTPEntry
	lastEntry      int
	requestsBehind int64 // requests the harness says it did not record

	result *message
}

func newCollector(e Execution) *collector {
	return &collector{
		execution: e, redact: newRedactor(e.Secrets, e.APIURL, e.APIRoot), entries: map[int]HTTPEntry{}, lastEntry: -1,
	}
}

// add takes one frame that carried the job's nonce.
func (c *collector) add(m message) {
	switch m.Kind {
	case kindLog:
		c.addLog(m.Log, m.LogCut)
	case kindLogsDropped:
		c.droppedBy = max(c.droppedBy, m.Dropped)
	case kindHTTP:
		if m.Entry != nil && m.Index >= 0 {
			c.addEntry(m.Index, *m.Entry)
		}
	case kindHTTPDropped:
		c.requestsBehind = max(c.requestsBehind, m.Dropped)
	case kindResult:
		if c.result == nil {
			c.result = &m
		}
	}
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

func (c *collector) addEntry(index int, e HTTPEntry) {
	c.lastEntry = max(c.lastEntry, index)
	if index >= maxRequests {
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
	before := c.entries[index]
	c.entries[index] = e
	if c.execution.Observer != nil && e.answered() && !before.answered() {
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
	result.Dropped = Dropped{Messages: c.dropped.Messages + c.droppedBy, Bytes: c.dropped.Bytes}
	record := &HTTPRecord{Requests: []HTTPEntry{}}
	for i := range maxRequests {
		if entry, ok := c.entries[i]; ok {
			record.Requests = append(record.Requests, entry)
		}
	}
	record.NotLogged = max(c.requestsBehind, int64(c.lastEntry+1-maxRequests), 0)
	record.Count = int64(len(record.Requests)) + record.NotLogged
	result.HTTP = record
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

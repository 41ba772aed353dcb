package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/internal/backoff"
)

// maxAnswer bounds an answer, and one event, in bytes.
const maxAnswer = 64 << 20

// Client speaks with kizen-sidecar serve. URL is required. It is safe for concurrent use.
type Client struct {
	// URL is where serve listens, such as https://sidecar.internal:8080.
	URL string
	// Token authenticates the caller. Callers with a client certificate leave it empty.
	Token string
	// BusinessID and UserID say for whom a trusted caller acts; other callers leave them empty.
	BusinessID, UserID string
	// HTTP is the client to use; default [http.DefaultClient].
	HTTP *http.Client
}

// Error is an answer of the server that is no result.
type Error struct {
	// Status is the status of HTTP, Code the server's own word for the refusal, such as "busy" or "draining".
	Status int
	Code   string
	Detail string
	// Fields are the mistakes of the request, keyed by field; nil unless Status is 400.
	Fields json.RawMessage
	// RetryAfter is how long to wait before the same request may succeed; zero: it will not by waiting.
	RetryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string {
	if e.Fields != nil {
		return fmt.Sprintf("the request was refused: %s", e.Fields)
	}
	return fmt.Sprintf("the server answered %d %s: %s", e.Status, e.Code, e.Detail)
}

// Run runs a step and waits for its result on one connection. The end of ctx cancels the step.
func (c *Client) Run(ctx context.Context, request Request) (Result, error) {
	response, body, err := c.exchange(ctx, http.MethodPost, "/api/coderunner/run", request)
	if err != nil {
		return Result{}, err
	}
	// A step that failed is answered with its result too, whatever the status.
	var result Result
	if json.Unmarshal(body, &result) != nil || result.RequestID == "" {
		return Result{}, errorOf(response, body)
	}
	return result, nil
}

// Start starts an execution and does not wait for it. Repeated with the same ExecutionID it returns the same execution.
func (c *Client) Start(ctx context.Context, request Request) (Execution, error) {
	request.ExecutionID = cmp.Or(request.ExecutionID, uuid.NewString())
	return c.execution(ctx, http.MethodPost, "/executions", request)
}

// Get returns an execution as it is now.
func (c *Client) Get(ctx context.Context, id string) (Execution, error) {
	return c.execution(ctx, http.MethodGet, "/executions/"+url.PathEscape(id), nil)
}

// Cancel takes the key of an execution back and kills its step. It returns before the execution has ended.
func (c *Client) Cancel(ctx context.Context, id string) error {
	_, err := c.execution(ctx, http.MethodDelete, "/executions/"+url.PathEscape(id), nil)
	return err
}

// Wait waits until an execution has finished, through connections that break.
func (c *Client) Wait(ctx context.Context, id string) (Execution, error) {
	for _, err := range c.Events(ctx, id, 0) {
		if err != nil {
			return Execution{}, err
		}
	}
	return c.Get(ctx, id)
}

// Events returns the events of an execution after the one with a number, as they come, up to "finished". A stream that breaks
// is opened again where it broke. The error, if any, comes last: the end of ctx, or an [*Error].
func (c *Client) Events(ctx context.Context, id string, after int) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for failures := 1; ; failures++ {
			before := after
			ended, err := c.stream(ctx, id, &after, func(e Event) bool { return yield(e, nil) })
			if after > before {
				failures = 1
			}
			pause := backoff.Delay(failures, minPause, maxPause)
			var refused *Error
			switch {
			case ended:
				return
			case ctx.Err() != nil:
				yield(Event{}, fmt.Errorf("wait for execution %s: %w", id, context.Cause(ctx)))
				return
			case errors.As(err, &refused) && refused.RetryAfter == 0:
				yield(Event{}, err)
				return
			case refused != nil:
				pause = refused.RetryAfter
			}
			_ = backoff.Wait(ctx, pause) // the next attempt says that ctx has ended
		}
	}
}

// minPause and maxPause bound how long a stream that broke waits before it is opened again.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// stream reads one stream of events and moves after on. ended is true when nothing is to come, or when the caller stops.
func (c *Client) stream(ctx context.Context, id string, after *int, yield func(Event) bool) (ended bool, err error) {
	response, err := c.send(ctx, http.MethodGet, "/executions/"+url.PathEscape(id)+"/events", nil, http.Header{
		"Accept": {"text/event-stream"}, "Last-Event-Id": {strconv.Itoa(*after)},
	})
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusNoContent:
		return true, nil
	case http.StatusOK:
	default:
		body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		if err != nil {
			return false, err
		}
		return false, errorOf(response, body)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, maxAnswer)
	var event Event
	for lines.Scan() {
		// The server writes a line each for id, event and data, and an empty one at which the event is complete. Lines that
		// begin with a colon are comments. See section 9.2.6 of the HTML Standard.
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "" && event.Type != "":
			*after = event.Number
			if !yield(event) || event.Type == "finished" {
				return true, nil
			}
			event = Event{}
		case field == "id":
			event.Number, err = strconv.Atoi(value)
		case field == "event":
			event.Type = value
		case field == "data":
			err = json.Unmarshal([]byte(value), &event)
		}
		if err != nil {
			return false, fmt.Errorf("read an event of execution %s: %w", id, err)
		}
	}
	return false, cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
}

// execution sends a request whose answer is an execution.
func (c *Client) execution(ctx context.Context, method, path string, body any) (Execution, error) {
	response, answer, err := c.exchange(ctx, method, path, body)
	if err != nil {
		return Execution{}, err
	}
	if response.StatusCode >= 300 {
		return Execution{}, errorOf(response, answer)
	}
	var execution Execution
	if err := json.Unmarshal(answer, &execution); err != nil {
		return Execution{}, fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	return execution, nil
}

// exchange sends body as JSON, unless it is nil, and reads the answer whole.
func (c *Client) exchange(ctx context.Context, method, path string, body any) (*http.Response, []byte, error) {
	response, err := c.send(ctx, method, path, body, http.Header{})
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	return response, answer, nil
}

func (c *Client) send(ctx context.Context, method, path string, body any, header http.Header) (*http.Response, error) {
	var sent io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		sent = bytes.NewReader(encoded)
		header.Set("Content-Type", "application/json")
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+path, sent)
	if err != nil {
		return nil, fmt.Errorf("the URL of the sidecar is not valid: %w", err)
	}
	request.Header = header
	for name, value := range map[string]string{"X-Business-Id": c.BusinessID, "X-User-Id": c.UserID} {
		if value != "" {
			header.Set(name, value)
		}
	}
	if c.Token != "" {
		header.Set("Authorization", "Bearer "+c.Token)
	}
	using := cmp.Or(c.HTTP, http.DefaultClient)
	return using.Do(request)
}

// errorOf is the error of an answer that is neither a result nor an execution.
func errorOf(response *http.Response, body []byte) error {
	refused := &Error{Status: response.StatusCode}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		refused.RetryAfter = time.Duration(seconds) * time.Second
	}
	var said struct {
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}
	switch {
	case json.Unmarshal(body, &said) == nil && said.Code != "":
		refused.Code, refused.Detail = said.Code, said.Detail
	case response.StatusCode == http.StatusBadRequest && json.Valid(body):
		refused.Fields = body
	default:
		refused.Code, refused.Detail = "unknown", "the answer is not one of kizen-sidecar; check the URL"
	}
	return refused
}

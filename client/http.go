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

// maxAnswer is the maximum size of a response, and of one event, in bytes.
const maxAnswer = 64 << 20

// Client calls kizen-sidecar serve. URL is required. It is safe for concurrent use.
type Client struct {
	// URL is the address of serve, such as https://sidecar.internal:8080.
	URL string
	// Token authenticates the caller. Callers with a client certificate leave it empty.
	Token string
	// BusinessID and UserID say whom a trusted caller acts for; other callers leave them empty.
	BusinessID, UserID string
	// HTTP is the client to use; default [http.DefaultClient].
	HTTP *http.Client
}

// Error is a response of the server that is not a result.
type Error struct {
	// Status is the HTTP status, Code the server's code of the refusal, such as "busy" or "draining".
	Status int
	Code   string
	Detail string
	// Fields holds the errors of the request, keyed by field; nil unless Status is 400.
	Fields json.RawMessage
	// RetryAfter is how long to wait before repeating the request; zero if waiting does not help.
	RetryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string {
	if e.Fields != nil {
		return fmt.Sprintf("the request was refused: %s", e.Fields)
	}
	return fmt.Sprintf("the server answered %d %s: %s", e.Status, e.Code, e.Detail)
}

// Run runs a step and waits for its result on one connection. If ctx ends, the step is cancelled.
func (c *Client) Run(ctx context.Context, request Request) (Result, error) {
	response, body, err := c.exchange(ctx, http.MethodPost, "/api/coderunner/run", request)
	if err != nil {
		return Result{}, err
	}
	// The response to a failed step is its result too, whatever the status.
	var result Result
	if json.Unmarshal(body, &result) != nil || result.RequestID == "" {
		return Result{}, errorOf(response, body)
	}
	return result, nil
}

// Start starts an execution and does not wait for it. Repeated with the same ExecutionID it returns the same
// execution.
func (c *Client) Start(ctx context.Context, request Request) (Execution, error) {
	request.ExecutionID = cmp.Or(request.ExecutionID, uuid.NewString())
	return c.execution(ctx, http.MethodPost, "/executions", request)
}

// Get returns the current state of an execution.
func (c *Client) Get(ctx context.Context, id string) (Execution, error) {
	return c.execution(ctx, http.MethodGet, "/executions/"+url.PathEscape(id), nil)
}

// Cancel revokes the key of an execution and kills its step. It returns before the execution has ended.
func (c *Client) Cancel(ctx context.Context, id string) error {
	_, err := c.execution(ctx, http.MethodDelete, "/executions/"+url.PathEscape(id), nil)
	return err
}

// Wait waits until an execution has finished, and reconnects if the connection breaks.
func (c *Client) Wait(ctx context.Context, id string) (Execution, error) {
	for _, err := range c.Events(ctx, id, 0) {
		if err != nil {
			return Execution{}, err
		}
	}
	return c.Get(ctx, id)
}

// Events returns the events of an execution after the given number as they occur, up to "finished". If the stream
// breaks, Events resumes it. The error, if any, comes last: the end of ctx, or an [*Error].
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
			_ = backoff.Wait(ctx, pause) // if ctx has ended, the next attempt reports it
		}
	}
}

// minPause and maxPause limit the wait before a broken stream is reopened.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// stream reads one stream of events and advances after. ended is true if no events follow, or if the caller stops.
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
		// The server writes one line each for id, event and data, and an empty line at the end of the event. Lines
		// that begin with a colon are comments. See section 9.2.6 of the HTML Standard.
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

// execution sends a request whose response is an execution.
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

// exchange sends body as JSON, unless it is nil, and reads the whole response.
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

// errorOf returns the error of a response that is neither a result nor an execution.
func errorOf(response *http.Response, body []byte) error {
	refused := &Error{Status: response.StatusCode}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		refused.RetryAfter = time.Duration(seconds) * time.Second
	}
	var problem struct {
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}
	switch {
	case json.Unmarshal(body, &problem) == nil && problem.Code != "":
		refused.Code, refused.Detail = problem.Code, problem.Detail
	case response.StatusCode == http.StatusBadRequest && json.Valid(body):
		refused.Fields = body
	default:
		refused.Code, refused.Detail = "unknown", "the response is not from kizen-sidecar; check the URL"
	}
	return refused
}

package terminal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/shown"
	"github.com/kizen/kizen-sidecar/runner"
)

// PrintJSON writes one indented JSON document that is safe to show in a terminal.
func PrintJSON(w io.Writer, document any) error {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(document); err != nil {
		return err
	}
	_, err := w.Write(shown.JSON(out.Bytes()))
	return err
}

// PrintFailure writes the document of an execution that never ran, or whose outcome is unknown.
func PrintFailure(w io.Writer, requestID string, outcome outcomes.Outcome, err error) error {
	document := struct {
		RequestID    string   `json:"request_id"`
		DurationMS   float64  `json:"duration_ms"`
		Values       any      `json:"values"`
		Logs         []string `json:"logs"`
		HTTPRequests any      `json:"http_requests"`
		Error        any      `json:"error"`
	}{RequestID: requestID, Logs: []string{}, Error: map[string]string{"error": err.Error(), "detail": "",
		"kind": string(outcome)}}
	if fields, ok := errors.AsType[*runner.FieldErrors](err); ok {
		document.Error = fields
	}
	return PrintJSON(w, document)
}

package terminal

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/kizen/kizen-sidecar/internal/shown"
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

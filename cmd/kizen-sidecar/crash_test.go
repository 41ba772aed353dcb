package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestAPanicIsAFailureOfTheSidecarWithItsDocument(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := crashed(streams{strings.NewReader(""), &stdout, &stderr}, []string{"run", "step", "--json"}, "index out of range", []byte("goroutine 1"))
	var document failure
	if err := json.Unmarshal(stdout.Bytes(), &document); err != nil || code != exitSidecar || !strings.Contains(stdout.String(), "index out of range") {
		t.Errorf("%d %v %s", code, err, stdout.String())
	}
	if !strings.Contains(stderr.String(), "goroutine 1") || !strings.Contains(stderr.String(), "please report it") {
		t.Errorf("standard error: %s", stderr.String())
	}
	stdout.Reset()
	if code := crashed(streams{strings.NewReader(""), &stdout, &stderr}, []string{"serve"}, "x", nil); code != exitSidecar || stdout.Len() > 0 {
		t.Errorf("serve: %d %s", code, stdout.String())
	}
}

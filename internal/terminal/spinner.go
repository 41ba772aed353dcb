package terminal

import (
	"fmt"
	"io"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/shown"
	"github.com/kizen/kizen-sidecar/telemetry"
)

const (
	spinnerDelay = time.Second
	spinnerPace  = 100 * time.Millisecond
)

var spinnerFrames = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// StartSpinner shows, on a terminal, that a task has been running for more than a second, and for how long. It returns
// a function that removes the line and waits until it is removed. If the output is not a terminal, it does nothing.
func StartSpinner(w io.Writer, what string) (stop func()) {
	if !telemetry.IsTerminal(w) {
		return func() {}
	}
	quit, gone := make(chan struct{}), make(chan struct{})
	routine.Go(func() {
		defer close(gone)
		spin(w, what, quit)
	})
	return func() {
		close(quit)
		<-gone
	}
}

func spin(w io.Writer, what string, quit <-chan struct{}) {
	const clearLine = "\r\x1b[K"
	started := time.Now()
	wait := time.NewTimer(spinnerDelay)
	defer wait.Stop()
	for frame := 0; ; frame++ {
		select {
		case <-quit:
			if frame > 0 {
				fmt.Fprint(w, clearLine)
			}
			return
		case <-wait.C:
			elapsed := time.Since(started).Seconds()
			fmt.Fprintf(w, "%s%c running %s %.1f s", clearLine, spinnerFrames[frame%len(spinnerFrames)], shown.Text(what),
				elapsed)
			wait.Reset(spinnerPace)
		}
	}
}

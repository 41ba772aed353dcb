package runner

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDataThatArrivedBeforeTheDeadlineIsRead(t *testing.T) {
	past := time.Now().Add(-time.Hour)
	pair := func(ctx context.Context) (*lateReader, *os.File) {
		ours, theirs, err := socketPair(unix.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
		if err := ours.SetReadDeadline(past); err != nil {
			t.Fatal(err)
		}
		return &lateReader{ctx: ctx, file: ours}, theirs
	}
	t.Run("nothing", func(t *testing.T) {
		r, _ := pair(t.Context())
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("a frame that is larger than the socket's buffer", func(t *testing.T) {
		r, theirs := pair(t.Context())
		sent := make([]byte, 6<<20)
		begun := make(chan struct{})
		go func() {
			_, _ = theirs.Write(sent[:1])
			close(begun)
			_, _ = theirs.Write(sent[1:])
		}()
		<-begun
		if n, err := io.ReadFull(r, make([]byte, len(sent))); err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("the end", func(t *testing.T) {
		r, theirs := pair(t.Context())
		_ = theirs.Close()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r, theirs := pair(ctx)
		if _, err := theirs.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("without an end", func(t *testing.T) {
		r, theirs := pair(t.Context())
		if _, err := theirs.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, err := theirs.Write(make([]byte, 1<<16)); err != nil {
					return // the test is over
				}
			}
		}()
		begun := time.Now()
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) < lateLimit {
			t.Errorf("read for %s: %v", time.Since(begun), err)
		}
	})
}

package clocks

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

func TestWatchWarnsWhenTheClockOfRedisDiffers(t *testing.T) {
	for name, row := range map[string]struct {
		ahead time.Duration
		says  string
	}{
		"ahead":  {time.Minute, "redis_ahead="},
		"behind": {-time.Minute, "redis_ahead=-"},
		"equal":  {0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := miniredis.RunT(t)
			server.SetTime(time.Now().Add(row.ahead))
			client, err := redisconn.Open(redisconn.Config{URL: "redis://" + server.Addr()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			if err := client.Ping(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			asked := server.CommandCount()
			var log buffer
			stop := Watch(t.Context(), client, slog.New(slog.NewTextHandler(&log, nil)))
			redistest.Await(t, "the clock to be read", func() bool {
				return server.CommandCount() > asked && (row.says == "" || log.String() != "")
			})
			stop()
			if got := log.String(); (got != "") != (row.says != "") || !strings.Contains(got, row.says) ||
				strings.Count(got, "synchronise them") > 1 {
				t.Errorf("logged %q, want %q", got, row.says)
			}
		})
	}
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(data)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

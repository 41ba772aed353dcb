package minter

import (
	"fmt"

	"github.com/alicebob/miniredis/v2"
)

// Embedded is a Redis inside this process, for when no other is configured. Its content dies with it.
type Embedded struct{ server *miniredis.Miniredis }

// StartEmbedded starts an embedded Redis on addr, a loopback address; port 0 takes a free one. Lifetimes elapse as they do in
// a real server.
func StartEmbedded(addr string) (*Embedded, error) {
	server := miniredis.NewMiniRedis()
	server.ClockTTL(true)
	if err := server.StartAddr(addr); err != nil {
		return nil, fmt.Errorf("start the embedded redis on %s: %w", addr, err)
	}
	return &Embedded{server}, nil
}

// URL is the server's address, as [RedisConfig] takes it.
func (e *Embedded) URL() string { return "redis://" + e.server.Addr() }

// Close stops the server.
func (e *Embedded) Close() { e.server.Close() }

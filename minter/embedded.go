package minter

import (
	"crypto/rand"
	"fmt"

	"github.com/alicebob/miniredis/v2"
)

// Embedded is a Redis inside this process, for when no other is configured. Its content dies with it.
type Embedded struct {
	server   *miniredis.Miniredis
	password string
}

// StartEmbedded starts an embedded Redis on addr, a loopback address; port 0 takes a free one. It wants a password of its own
// making, because steps share the loopback with it. Lifetimes elapse as they do in a real server.
func StartEmbedded(addr string) (*Embedded, error) {
	server := miniredis.NewMiniRedis()
	server.ClockTTL(true)
	password := rand.Text()
	server.RequireAuth(password)
	if err := server.StartAddr(addr); err != nil {
		return nil, fmt.Errorf("start the embedded redis on %s: %w", addr, err)
	}
	return &Embedded{server, password}, nil
}

// Addr is the server's address, host:port.
func (e *Embedded) Addr() string { return e.server.Addr() }

// URL is the server's address with its password, as [RedisConfig] takes it.
func (e *Embedded) URL() string { return "redis://:" + e.password + "@" + e.Addr() }

// Close stops the server.
func (e *Embedded) Close() { e.server.Close() }

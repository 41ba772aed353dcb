package redisconn

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/crowd"
	"github.com/kizen/kizen-sidecar/internal/routine"
)

// Embedded is a Redis inside this process, for use without a configured one. Its data is lost when the process ends.
// It has no listener until it is shared; [Open] uses connections that no other process can open.
type Embedded struct {
	server   *miniredis.Miniredis
	password string
	listener net.Listener // nil unless it is shared

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
	all    routine.Group
}

// StartEmbedded starts an embedded Redis. Lifetimes elapse as they do in a real server.
func StartEmbedded() (*Embedded, error) {
	e := &Embedded{server: miniredis.NewMiniRedis(), password: rand.Text(), open: map[net.Conn]struct{}{}}
	e.server.ClockTTL(true)
	e.server.RequireAuth(e.password)
	conn, err := e.server.Dial() // starts the server
	if err != nil {
		return nil, fmt.Errorf("start the embedded redis: %w", err)
	}
	return e, conn.Close()
}

// Share lets other processes use the store on addr, a loopback address; port 0 chooses a free port. They need the
// password in URL, because steps share the loopback with them.
func (e *Embedded) Share(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("share the embedded redis on %s: %w", addr, err)
	}
	listener = crowd.New(maxSharedConns).Listener(listener)
	e.listener = listener
	e.all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			e.serve(conn, false)
		}
	})
	return nil
}

// Addr returns the address of a shared store, host:port.
func (e *Embedded) Addr() string { return e.listener.Addr().String() }

// URL returns the URL of a shared store with its password, for [Config].
func (e *Embedded) URL() string { return "redis://:" + e.password + "@" + e.Addr() }

// Close stops the server and cuts every connection.
func (e *Embedded) Close() {
	if e.listener != nil {
		_ = e.listener.Close() // no data is lost
	}
	e.mu.Lock()
	e.closed = true
	for conn := range e.open {
		_ = conn.Close() // cut on purpose
	}
	e.mu.Unlock()
	e.all.Wait()
	e.server.Close()
}

// dial returns a connection to the store: an unnamed socket pair. Unlike net.Pipe it has buffers; without them, a
// client that writes a pipeline and a server that answers its first command would deadlock.
func (e *Embedded) dial() (net.Conn, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded redis: %w", err)
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "embedded redis")
		ends[i], err = net.FileConn(file)
		_ = file.Close() // FileConn has a copy
		if err != nil {
			return nil, fmt.Errorf("connect to the embedded redis: %w", err)
		}
	}
	e.serve(ends[1], true)
	return ends[0], nil
}

// target returns a target for [Open] that is this store.
func (e *Embedded) target() target {
	mode := redisModes[""]
	return target{name: "the embedded redis", open: mode.open, options: &redis.UniversalOptions{
		Protocol: 3, Addrs: []string{"embedded"}, Password: e.password,
		Dialer: func(context.Context, string, string) (net.Conn, error) { return e.dial() },
	}}
}

const (
	// maxSharedConns is the maximal number of connections of a shared store. Beyond it, the store closes the
	// connection that has waited longest without authenticating.
	maxSharedConns = 128
	// authLimit is how long a connection may take to authenticate.
	authLimit = 10 * time.Second
	// maxGreeting and maxCommand are the maximal sizes of a command in bytes, before and after authentication.
	maxGreeting = 1 << 10
	maxCommand  = 8 << 20
	// maxArguments is the maximal number of parts of a command. Our largest command reads some thousand keys.
	maxArguments = 1 << 16
)

// serve serves one connection. trusted reports that it comes from this process.
func (e *Embedded) serve(conn net.Conn, trusted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = conn.Close() // refused
		return
	}
	e.open[conn] = struct{}{}
	e.all.Go(func() {
		defer func() {
			// miniredis is a test double: a panic on one connection must not end this process.
			_ = recover()
			_ = conn.Close() // closes the other end too
			e.mu.Lock()
			delete(e.open, conn)
			e.mu.Unlock()
		}()
		e.answer(conn, trusted)
	})
}

// answer reads commands with its own limits and passes them to the store. Unauthenticated input never reaches the
// store.
func (e *Embedded) answer(conn net.Conn, trusted bool) {
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	peer := server.NewPeer(out)
	if !trusted {
		_ = conn.SetDeadline(time.Now().Add(authLimit)) // on a closed connection the next read fails
	}
	for !peer.Closed() {
		limit := maxCommand
		if !trusted {
			limit = maxGreeting
		}
		command, err := readCommand(in, limit)
		if err != nil {
			if errors.Is(err, errCommand) {
				peer.WriteError("ERR Protocol error: " + err.Error())
				peer.Flush()
			}
			return
		}
		name := strings.ToUpper(command[0])
		if !trusted && (name == "AUTH" || name == "HELLO") && e.shows(command) {
			trusted = true
			defer crowd.HoldConn(conn)()
			_ = conn.SetDeadline(time.Time{})
		}
		if trusted {
			e.server.Server().Dispatch(peer, command)
		} else {
			peer.WriteError("NOAUTH Authentication required.")
		}
		peer.Flush()
	}
}

// shows reports whether a command contains the password.
func (e *Embedded) shows(command []string) bool {
	for _, argument := range command[1:] {
		if subtle.ConstantTimeCompare([]byte(argument), []byte(e.password)) == 1 {
			return true
		}
	}
	return false
}

var errCommand = errors.New("it is not an array of bulk strings within the limits of the embedded redis")

// readCommand reads an array of bulk strings, as clients send it. It allocates no memory for data that has not arrived.
func readCommand(in *bufio.Reader, limit int) ([]string, error) {
	count, err := readLength(in, '*')
	if err != nil {
		return nil, err
	}
	if count < 1 || count > maxArguments || count > limit {
		return nil, errCommand
	}
	var command []string
	for range count {
		length, err := readLength(in, '$')
		if err != nil {
			return nil, err
		}
		if limit -= length; length < 0 || limit < 0 {
			return nil, errCommand
		}
		var text strings.Builder
		if _, err := io.CopyN(&text, in, int64(length)); err != nil {
			return nil, err
		}
		var end [2]byte
		if _, err := io.ReadFull(in, end[:]); err != nil {
			return nil, err
		}
		if string(end[:]) != "\r\n" {
			return nil, errCommand
		}
		command = append(command, text.String())
	}
	return command, nil
}

// readLength reads a line with a kind and a number.
func readLength(in *bufio.Reader, kind byte) (int, error) {
	line, err := in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return 0, errCommand
	}
	if err != nil {
		return 0, err
	}
	text := strings.TrimSuffix(string(line), "\r\n")
	if len(text) < 2 || text[0] != kind {
		return 0, errCommand
	}
	length, err := strconv.ParseInt(text[1:], 10, 32)
	if err != nil {
		return 0, errCommand
	}
	return int(length), nil
}

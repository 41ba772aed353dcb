package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// measuring is a program that times connects, transfers and requests; it prints one figure per line.
const measuring = `
import os, socket, sys, threading, time
os.read(3, 1)
address = ("127.0.0.1", int(sys.argv[1]))
def open_one():
    s = socket.socket(); began = time.perf_counter_ns(); s.connect(address); took = time.perf_counter_ns() - began
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s, took
def connects(count):
    times = []
    for _ in range(count):
        s, took = open_one(); times.append(took); s.close()
    return times
connects(200)
times = sorted(connects(2000))
print("connect-p50-us", times[len(times) // 2] / 1e3); print("connect-p99-us", times[len(times) * 99 // 100] / 1e3)
many = []
threads = [threading.Thread(target=lambda: many.extend(connects(20))) for _ in range(60)]
began = time.perf_counter()
for t in threads: t.start()
for t in threads: t.join()
print("connects/s-60-at-once", len(many) / (time.perf_counter() - began))
s, _ = open_one(); buffer = bytearray(1 << 20); size = 1 << 30
began = time.perf_counter(); s.sendall(b"D" + size.to_bytes(8, "big")); left = size
while left: left -= s.recv_into(buffer)
print("download-MB/s", size / 1e6 / (time.perf_counter() - began))
began = time.perf_counter(); s.sendall(b"U" + size.to_bytes(8, "big")); left = size
while left: s.sendall(buffer); left -= len(buffer)
s.recv(1)
print("upload-MB/s", size / 1e6 / (time.perf_counter() - began))
count = 20000; began = time.perf_counter()
for _ in range(count): s.send(b"R" + bytes(8)); s.recv(1)
print("requests/s", count / (time.perf_counter() - began))
`

// serveMeasured serves the program measuring.
func serveMeasured(connection net.Conn) {
	defer func() { _ = connection.Close() }()
	chunk := make([]byte, 1<<20)
	var asked [9]byte
	for {
		if _, err := io.ReadFull(connection, asked[:]); err != nil {
			return
		}
		size := int64(asked[1])<<56 | int64(asked[2])<<48 | int64(asked[3])<<40 | int64(asked[4])<<32 | int64(asked[5])<<24 |
			int64(asked[6])<<16 | int64(asked[7])<<8 | int64(asked[8])
		var err error
		switch asked[0] {
		case 'D':
			for ; size > 0 && err == nil; size -= int64(len(chunk)) {
				_, err = connection.Write(chunk)
			}
		case 'U':
			if _, err = io.CopyBuffer(writer{}, io.LimitReader(connection, size), chunk); err == nil {
				_, err = connection.Write([]byte{0})
			}
		default:
			_, err = connection.Write([]byte{0})
		}
		if err != nil {
			return
		}
	}
}

// writer discards its input. It has no ReadFrom, which would use a smaller buffer.
type writer struct{}

func (writer) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkConnections compares a program whose connections a policy permits with one on the host's network.
func BenchmarkConnections(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	routine.Go(func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			routine.Go(func() { serveMeasured(connection) })
		}
	})
	s, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	at := addressOf(listener)
	sums := map[Network]map[string]float64{NetworkHost: {}, NetworkPolicy: {}}
	runs := 0
	for b.Loop() {
		runs++
		for network, sum := range sums {
			r, _ := supervised(b, s, network, at, measuring,
				func(spec *Spec) { spec.Argv = append(spec.Argv, fmt.Sprint(at.Port())) })
			if r.Code != 0 || r.Err != nil {
				b.Fatalf("exit code %d: %s", r.Code, r.out)
			}
			for line := range bytes.Lines([]byte(r.out)) {
				name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
				figure, err := strconv.ParseFloat(value, 64)
				if err != nil {
					b.Fatal(err)
				}
				sum[name] += figure
			}
		}
	}
	for network, sum := range sums {
		for name, total := range sum {
			b.ReportMetric(total/float64(runs), string(network)+"-"+name)
		}
	}
}

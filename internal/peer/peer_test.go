package peer

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// connected returns the two ends of a connection on loopback.
func connected(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	defer listener.Close()
	client, err = net.Dial(network, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

func TestOfReturnsTheUserAndTheSocket(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": "localhost:0"} {
		t.Run(network, func(t *testing.T) {
			client, server := connected(t, network, address)
			owner, err := Of(server)
			if err != nil || owner.UserID != uint32(os.Getuid()) {
				t.Fatalf("%+v, %v", owner, err)
			}
			var status syscall.Stat_t
			raw, err := client.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &status) }); err != nil ||
				uint64(owner.Inode) != status.Ino {
				t.Errorf("inode %d, want %d (%v)", owner.Inode, status.Ino, err)
			}
		})
	}
}

func TestASocketOfAnotherUserIsKnown(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can start a program as another user")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	command := exec.CommandContext(t.Context(), "bash", "-c", `exec 3<>"/dev/tcp/127.0.0.1/$1"; read -r -u 3 _`, "bash",
		listener.Addr().String()[strings.LastIndex(listener.Addr().String(), ":")+1:])
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61999, Gid: 61999}}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	owner, err := Of(server)
	if err != nil || owner.UserID != 61999 {
		t.Errorf("%+v, %v", owner, err)
	}
	_ = server.Close()
	_ = command.Wait()
}

func TestAClosedEndHasNoOwner(t *testing.T) {
	client, server := connected(t, "tcp4", "127.0.0.1:0")
	_ = client.Close()
	if owner, err := Of(server); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotLocal) {
		t.Errorf("%+v, %v", owner, err)
	}
	pipe, _ := net.Pipe()
	if owner, err := Of(pipe); !errors.Is(err, ErrNotLocal) {
		t.Errorf("a pipe: %+v, %v", owner, err)
	}
}

// elsewhere is a connection from an address that no socket of this machine has.
type elsewhere struct{ net.Conn }

func (e elsewhere) RemoteAddr() net.Addr {
	own := *e.Conn.RemoteAddr().(*net.TCPAddr)
	own.IP = net.IPv4(192, 0, 2, 1)
	return &own
}

func TestAnEndOnAnotherMachineIsNotLocal(t *testing.T) {
	_, server := connected(t, "tcp4", "127.0.0.1:0")
	if owner, err := Of(elsewhere{server}); !errors.Is(err, ErrNotLocal) {
		t.Errorf("%+v, %v", owner, err)
	}
}

func BenchmarkOf(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	for b.Loop() {
		if _, err := Of(server); err != nil {
			b.Fatal(err)
		}
	}
}

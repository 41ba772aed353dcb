package redistest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// StartNginx starts nginx in dir, and returns its master process once the workers run. The configuration must contain
// "daemon off" and "error_log stderr notice".
func StartNginx(t testing.TB, dir, config string) *os.Process {
	t.Helper()
	binary, file := Require(t, "nginx"), filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(binary, "-p", dir, "-c", file, "-e", "stderr")
	Run(t, "start worker process ", command, syscall.SIGTERM)
	return command.Process
}

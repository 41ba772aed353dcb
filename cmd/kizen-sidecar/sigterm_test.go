package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

// TestSIGTERMAnswersACallThatDoesNotFinish: the response gives the reason if the API does not answer within the grace.
func TestSIGTERMAnswersACallThatDoesNotFinish(t *testing.T) {
	for _, grace := range []string{"0s", "50ms"} {
		root, entered, release := waitingAPI(t)
		p := startProxy(t, "--api-root", root, "--shutdown-grace", grace)
		base, err := url.Parse(p.URL)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", base.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST "+base.Path+"/x HTTP/1.1\r\nHost: "+base.Host+"\r\nContent-Length: 2\r\n\r\nab"); err != nil {
			t.Fatal(err)
		}
		<-entered
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("grace %s: %v", grace, err)
		}
		body, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != 503 || !strings.Contains(string(body), `"code":"shutting_down"`) {
			t.Errorf("grace %s: %d %s", grace, answer.StatusCode, body)
		}
		if code := p.ExitCode(t); code != exitOK {
			t.Errorf("exit code %d", code)
		}
		release()
	}
}

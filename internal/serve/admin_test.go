package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestReadyNamesEveryCheckAndItsError(t *testing.T) {
	fine := func(context.Context) error { return nil }
	down := func(context.Context) error { return errors.New("redis at 127.0.0.1:1 refused the connection") }
	status, body := get(t, AdminHandler(AdminConfig{Ready: map[string]Check{"redis": fine, "python": fine}}), "/readyz")
	if status != 200 || !strings.Contains(body, `"python":"ok"`) {
		t.Errorf("ready: %d %s", status, body)
	}
	status, body = get(t, AdminHandler(AdminConfig{Ready: map[string]Check{"redis": down, "python": fine},
		Details: func() any { return 7 }}), "/readyz")
	var answer readiness
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 503 ||
		answer.Checks["redis"] != "redis at 127.0.0.1:1 refused the connection" ||
		answer.Checks["python"] != "ok" || answer.Status != "not ready" || answer.Details != 7.0 {
		t.Errorf("not ready: %d %s", status, body)
	}
}

func TestACheckThatHangsIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if status, body := get(t, AdminHandler(AdminConfig{Ready: map[string]Check{"redis": hangs}}), "/readyz"); status != 503 {
			t.Errorf("%d %s", status, body)
		}
	})
}

func TestHealthDoesNotDependOnTheChecks(t *testing.T) {
	h := AdminHandler(AdminConfig{Ready: map[string]Check{"redis": func(context.Context) error { return errors.New("down") }}})
	if status, _ := get(t, h, "/healthz"); status != 200 {
		t.Errorf("healthz = %d", status)
	}
	if status, _ := get(t, h, "/metrics"); status != 404 {
		t.Errorf("metrics, if not configured = %d", status)
	}
}

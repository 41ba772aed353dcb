package kubernetes

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// containers runs the commands of a pod's containers on this machine, with folders of the test in place of volumes.
type containers struct {
	environment []string
	volumes     *strings.Replacer
}

// command returns the command of a container; arguments, if any, replace its own.
func (p containers) command(t *testing.T, c corev1.Container, arguments ...string) *exec.Cmd {
	t.Helper()
	environment := slices.Clone(p.environment)
	values := []string{}
	for _, variable := range c.Env {
		if variable.ValueFrom == nil && variable.Name != "KIZEN_API_ROOT" { // the test sets these itself
			environment = append(environment, variable.Name+"="+p.volumes.Replace(variable.Value))
			values = append(values, "$("+variable.Name+")", variable.Value)
		}
	}
	if arguments == nil {
		arguments = slices.Concat(c.Command, c.Args)
	}
	if len(c.Command) == 0 {
		arguments = append([]string{"kizen-sidecar"}, arguments...) // the image's entry point
	}
	for i, argument := range arguments {
		arguments[i] = p.volumes.Replace(strings.NewReplacer(values...).Replace(argument))
	}
	command := exec.CommandContext(t.Context(), "env", arguments...) // env looks on the PATH of the new environment
	command.Env = environment
	return command
}

// TestTheContainersOfTheKubernetesJobRunInOrder: the commands of job.yaml, run as its containers would run, give the
// step its answer and end cleanly. The manifest, the built binary, an ordinary Python and a real Redis meet.
func TestTheContainersOfTheKubernetesJobRunInOrder(t *testing.T) {
	calls := make(chan http.Header, 10)
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/custom-objects" {
			calls <- r.Header
		}
	}))
	defer api.Close()
	found := manifests(t, "job.yaml")
	spec := found["Job"].(*batchv1.Job).Spec.Template.Spec
	client, sidecar, step := spec.InitContainers[0], spec.InitContainers[1], spec.Containers[0]
	dir, bin, keys := t.TempDir(), t.TempDir(), t.TempDir()
	if out, err := sidecartest.Command(t.Context(), nil, "keys", "generate", "--keys", keys).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Symlink(redistest.RequirePython(t, "requests"), filepath.Join(bin, "python")); err != nil {
		t.Fatal(err)
	}
	sidecartest.WriteFile(t, dir, "script.py", found["ConfigMap"].(*corev1.ConfigMap).Data["script.py"])
	pod := containers{
		environment: []string{"PATH=" + strings.Join([]string{bin, sidecartest.Program(""), os.Getenv("PATH")}, ":"),
			"REDIS_URL=" + redistest.Start(t).URL(), "KIZEN_API_ROOT=" + api.URL + "/api"},
		volumes: strings.NewReplacer("/run/kizen", dir, "/step", dir, "/etc/kizen-keys", keys),
	}

	if out, err := pod.command(t, client).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	running := pod.command(t, sidecar)
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = running.Process.Kill()
		_ = running.Wait() // already waited for, or killed
	})
	sidecartest.WaitFor(t, func() bool {
		return pod.command(t, sidecar,
			sidecar.StartupProbe.Exec.Command[1:]...).Run() == nil
	})
	if out, err := pod.command(t, step).CombinedOutput(); err != nil || string(out) != "200\n" {
		t.Errorf("the step prints %q (%v)", out, err)
	}
	if err := errors.Join(running.Process.Signal(syscall.SIGTERM), running.Wait()); err != nil {
		t.Errorf("the sidecar ends with %v", err)
	}
	if n := len(calls); n != 1 {
		t.Fatalf("the API was called %d times", n)
	}
	if header := <-calls; header.Get("X-BUSINESS-ID") != "00000000-0000-4000-8000-00000000b001" ||
		header.Get("X-API-KEY") == "" {
		t.Errorf("the headers of the API call are %v", header)
	}
}

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

func TestREADMETellsOfEveryExample(t *testing.T) {
	examples, err := os.ReadDir(filepath.Join(projectRoot, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range examples {
		if !strings.Contains(readText(t, "README.md"), "| `examples/"+example.Name()+"` |") {
			t.Errorf("README.md does not tell of examples/%s", example.Name())
		}
	}
}

func TestTheDemoShowsThePageOfItsStepAndLeavesNothing(t *testing.T) {
	dir, temporary := t.TempDir(), t.TempDir()
	symlink(t, sidecartest.Program(""), filepath.Join(dir, "bin"))
	symlink(t, filepath.Join(projectRoot, "examples"), filepath.Join(dir, "examples"))
	demo := exec.CommandContext(t.Context(), filepath.Join(dir, "examples/demo"), "--log-level=error")
	demo.Env = []string{"PATH=" + filepath.Dir(pythonWithRequests(t)) + ":" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + temporary}
	out, err := demo.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Count Custom Objects succeeded") || !strings.Contains(string(out), "number_of_objects  n  7") {
		t.Errorf("%v\n%s", err, out)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v (%v)", left, err)
	}
}

func TestTheExampleOfAnOrchestratorGetsItsResult(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	sidecartest.StartService(t, nil, "worker", "--redis-url", redisURL, "--api-root", "http://127.0.0.1:1/api")
	orchestrator := exec.CommandContext(t.Context(), "go", "run", "./examples/enqueue", `outputs.log("hello")`)
	orchestrator.Dir, orchestrator.Env = projectRoot, append(os.Environ(), "REDIS_URL="+redisURL, "KIZEN_BUSINESS_ID=b-1", "KIZEN_USER_ID=u-1")
	out, err := orchestrator.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "ok\n{") || !strings.Contains(string(out), `"logs":["hello"]`) {
		t.Errorf("%v\n%s", err, out)
	}
}

// containers stand in for those of a pod: their commands run on this machine,
// with folders of the test in place of volumes.
type containers struct {
	environment []string
	volumes     *strings.Replacer
}

// command is what a container runs; arguments replace what it says.
func (p containers) command(t *testing.T, c corev1.Container, arguments ...string) *exec.Cmd {
	t.Helper()
	environment := slices.Clone(p.environment)
	values := []string{}
	for _, variable := range c.Env {
		if variable.ValueFrom == nil && variable.Name != "KIZEN_API_ROOT" { // the test's own stands in
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
	command := exec.CommandContext(t.Context(), "env", arguments...) // which looks on the PATH of the environment
	command.Env = environment
	return command
}

func TestTheKubernetesJobRunsOnThisMachineInItsOrder(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect([]route{{Method: "GET", Path: "/custom-objects", Responses: []cannedResponse{{Status: 200}}}})
	found := manifests(t, "job.yaml")
	spec := found["Job"].(*batchv1.Job).Spec.Template.Spec
	client, sidecar, step := spec.InitContainers[0], spec.InitContainers[1], spec.Containers[0]
	dir, bin, keys := t.TempDir(), t.TempDir(), t.TempDir()
	kid(t, "generate", "--keys", keys)
	symlink(t, pythonWithRequests(t), filepath.Join(bin, "python"))
	writeFile(t, dir, "script.py", found["ConfigMap"].(*corev1.ConfigMap).Data["script.py"])
	pod := containers{
		environment: []string{"PATH=" + strings.Join([]string{bin, sidecartest.Program(""), os.Getenv("PATH")}, ":"),
			"REDIS_URL=" + startRedisServer(t), "KIZEN_API_ROOT=" + api.root()},
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
		_ = running.Wait() // waited for already, or killed
	})
	waitFor(t, func() bool { return pod.command(t, sidecar, sidecar.StartupProbe.Exec.Command[1:]...).Run() == nil })
	if out, err := pod.command(t, step).CombinedOutput(); err != nil || string(out) != "200\n" {
		t.Errorf("the step prints %q (%v)", out, err)
	}
	if err := errors.Join(running.Process.Signal(syscall.SIGTERM), running.Wait()); err != nil {
		t.Errorf("the sidecar ends with %v", err)
	}
	calls := api.apiCalls()
	if len(calls) != 1 || calls[0].header.Get("X-BUSINESS-ID") != "00000000-0000-4000-8000-00000000b001" || calls[0].header.Get("X-API-KEY") == "" {
		t.Errorf("the API was called so: %+v", calls)
	}
}

package kubernetes

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

func TestMain(m *testing.M) { os.Exit(sidecartest.Main(m, "kizen-sidecar", "kizen-platform")) }

// manifests returns the documents of a file in examples/kubernetes by kind, each decoded strictly into its Kubernetes
// type.
func manifests(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../examples/kubernetes", file))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]any{}
	for _, part := range bytes.Split(text, []byte("\n---\n")) {
		var head struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(part, &head); err != nil {
			t.Fatal(err)
		}
		object := map[string]any{
			"batch/v1 Job": &batchv1.Job{}, "v1 ConfigMap": &corev1.ConfigMap{}, "apps/v1 Deployment": &appsv1.Deployment{},
			"policy/v1 PodDisruptionBudget":          &policyv1.PodDisruptionBudget{},
			"networking.k8s.io/v1 NetworkPolicy":     &networkingv1.NetworkPolicy{},
			"autoscaling/v2 HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
		}[head.APIVersion+" "+head.Kind]
		if object == nil {
			t.Fatalf("%s: no type for %+v", file, head)
		}
		if err := yaml.UnmarshalStrict(part, object); err != nil {
			t.Errorf("%s: %s: %v", file, head.Kind, err)
		}
		found[head.Kind] = object
	}
	return found
}

// checkPod checks a pod against the restricted Pod Security Standard, and its kizen containers against the built
// binary.
func checkPod(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil ||
		s.SeccompProfile.Type != "RuntimeDefault" {
		t.Errorf("the pod is not restricted: %+v", s)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("steps could read a token of the cluster")
	}
	volumes := map[string]bool{}
	for _, volume := range pod.Volumes {
		volumes[volume.Name] = true
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil ||
			!*s.ReadOnlyRootFilesystem ||
			s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
			t.Errorf("container %s is not restricted: %+v", c.Name, s)
		}
		for _, mount := range c.VolumeMounts {
			if !volumes[mount.Name] {
				t.Errorf("container %s mounts %s, which does not exist", c.Name, mount.Name)
			}
		}
		if strings.HasPrefix(c.Image, "kizen-sidecar") {
			sidecartest.RequireFlags(t, append([]string{"kizen-sidecar"}, c.Args...))
		}
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if probe != nil && probe.Exec != nil {
				sidecartest.RequireFlags(t, probe.Exec.Command)
			}
		}
	}
}

// requireSafe checks that a container that mints keys would be safe in a copy of the example: it signs only with keys
// from a Secret and calls only an API that the manifest names.
func requireSafe(t *testing.T, c corev1.Container, pod corev1.PodSpec) {
	t.Helper()
	keys := ""
	for _, argument := range c.Args {
		if path, ok := strings.CutPrefix(argument, "--keys="); ok {
			keys = path
		}
	}
	fromSecret := false
	for _, mount := range c.VolumeMounts {
		for _, volume := range pod.Volumes {
			fromSecret = fromSecret || mount.MountPath == keys && mount.ReadOnly && volume.Name == mount.Name &&
				volume.Secret != nil
		}
	}
	if !fromSecret {
		t.Errorf("container %s has the keys %q, which are not in a Secret", c.Name, keys)
	}
	root := slices.IndexFunc(c.Env, func(v corev1.EnvVar) bool {
		return v.Name == "KIZEN_API_ROOT" && strings.HasPrefix(v.Value, "https://")
	})
	if root < 0 {
		t.Errorf("container %s names no API root", c.Name)
	}
	if redis := slices.IndexFunc(c.Env, func(v corev1.EnvVar) bool {
		return v.Name == "REDIS_URL" && v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil
	}); redis < 0 {
		t.Errorf("container %s has no Redis from a Secret", c.Name)
	}
	if c.StartupProbe == nil || c.ReadinessProbe == nil || c.LivenessProbe == nil {
		t.Errorf("container %s lacks a probe", c.Name)
	}
}

// TestKubernetesJobRunsAStepBesideItsSidecar: job.yaml is valid for Kubernetes' own types, delays the step until its
// sidecar is ready, and cannot run the step twice.
func TestKubernetesJobRunsAStepBesideItsSidecar(t *testing.T) {
	found := manifests(t, "job.yaml")
	job := found["Job"].(*batchv1.Job)
	pod := job.Spec.Template.Spec
	checkPod(t, pod)
	sidecar := slices.IndexFunc(pod.InitContainers,
		func(c corev1.Container) bool { return c.RestartPolicy != nil && *c.RestartPolicy == "Always" })
	if sidecar < 0 || pod.InitContainers[sidecar].StartupProbe == nil {
		t.Error("no native sidecar delays the start of the container")
	}
	requireSafe(t, pod.InitContainers[sidecar], pod)
	if job.Spec.BackoffLimit == nil || *job.Spec.BackoffLimit != 0 || pod.RestartPolicy != "Never" {
		t.Error("a step could run twice")
	}
	if _, ok := found["ConfigMap"].(*corev1.ConfigMap).Data["script.py"]; !ok {
		t.Error("script.py is missing")
	}
}

// TestKubernetesFleetDrainsAndScales: worker.yaml gives a drain enough time and the steps enough memory, and its
// selectors, scaler and flags agree with each other and with the binary.
func TestKubernetesFleetDrainsAndScales(t *testing.T) {
	found := manifests(t, "worker.yaml")
	deployment := found["Deployment"].(*appsv1.Deployment)
	pod := deployment.Spec.Template.Spec
	checkPod(t, pod)
	worker := pod.Containers[0]
	if worker.ReadinessProbe.HTTPGet.Path != "/readyz" || worker.LivenessProbe.HTTPGet.Path != "/healthz" ||
		worker.Lifecycle.PreStop.Sleep == nil {
		t.Errorf("probes or drain hook are missing: %+v", worker)
	}
	if !slices.Contains(worker.Args, "--drain-timeout=60s") ||
		*pod.TerminationGracePeriodSeconds <= 60+worker.Lifecycle.PreStop.Sleep.Seconds {
		t.Error("the pod is killed before it has drained")
	}
	requireSafe(t, worker, pod)
	if !slices.Contains(worker.Args, "--sandbox=required") {
		t.Error("a step could run in a weaker sandbox")
	}
	const slots = 8
	if !slices.Contains(worker.Args, fmt.Sprintf("--slots=%d", slots)) ||
		worker.Resources.Limits.Memory().Value() < (slots+1)<<30 {
		t.Errorf("%s of memory is too little for %d steps of 1GiB and the worker", worker.Resources.Limits.Memory(), slots)
	}
	labels := deployment.Spec.Template.Labels
	for kind, selector := range map[string]map[string]string{
		"PodDisruptionBudget": found["PodDisruptionBudget"].(*policyv1.PodDisruptionBudget).Spec.Selector.MatchLabels,
		"NetworkPolicy":       found["NetworkPolicy"].(*networkingv1.NetworkPolicy).Spec.PodSelector.MatchLabels,
		"Deployment":          deployment.Spec.Selector.MatchLabels,
	} {
		for name, value := range selector {
			if labels[name] != value {
				t.Errorf("%s selects %s=%s, which no pod has", kind, name, value)
			}
		}
	}
	scaler := found["HorizontalPodAutoscaler"].(*autoscalingv2.HorizontalPodAutoscaler)
	if deployment.Spec.Replicas != nil {
		t.Error("applying the manifest again would undo the scaler's change")
	}
	if scaler.Spec.ScaleTargetRef.Name != deployment.Name ||
		scaler.Spec.Metrics[0].External.Metric.Name != "kizen_fleet_queue_depth" {
		t.Errorf("scales %+v", scaler.Spec)
	}
}

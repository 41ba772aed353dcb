package sandbox

import (
	"os/exec"
	"testing"
)

// BenchmarkStart compares a program in the sandbox with the same program outside. The difference is the cost of
// building, supervising and removing the sandbox.
func BenchmarkStart(b *testing.B) {
	program := []string{"/usr/bin/true"}
	b.Run("outside", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command(program[0]).Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, c := range []struct {
		name    string
		config  Config
		network Network
	}{
		{"sandbox", Config{}, NetworkHost},
		{"sandbox without cgroups", Config{without: accounting}, NetworkHost},
		{"sandbox with its own network", Config{}, NetworkKizenOnly},
		{"off", Config{Mode: ModeOff}, NetworkHost},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, err := New(c.config)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				process, err := s.Start(b.Context(), Spec{Argv: program, Network: c.network})
				if err != nil {
					b.Fatal(err)
				}
				if l := process.Listener(); l != nil {
					_ = l.Close()
				}
				if exit := process.Wait(); exit.Code != 0 {
					b.Fatalf("%+v", exit)
				}
			}
		})
	}
}

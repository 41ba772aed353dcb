package routine

import (
	"strings"
	"testing"
)

// TestAPanicReachesTheHandler is the only user of the handler in this test binary.
func TestAPanicReachesTheHandler(t *testing.T) {
	type death struct {
		cause any
		stack string
	}
	deaths := make(chan death, 1)
	OnPanic(func(cause any, stack []byte) { deaths <- death{cause, string(stack)} })
	var group Group
	for name, start := range map[string]func(f func()){
		"Go": Go, "Group": group.Go, "Safe": func(f func()) { Safe(f)() },
	} {
		start(func() { panic(name) })
		if d := <-deaths; d.cause != name || !strings.Contains(d.stack, "TestAPanicReachesTheHandler") {
			t.Errorf("%s: the handler got %v\n%s", name, d.cause, d.stack)
		}
		ended := make(chan struct{})
		start(func() { close(ended) })
		<-ended
	}
	group.Wait()
	if len(deaths) > 0 {
		t.Errorf("the handler also got %v", <-deaths)
	}
}

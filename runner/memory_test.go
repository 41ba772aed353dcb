package runner

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestMemoryOfACollectorIsBounded measures memory, not only the size of texts, for whatever frames a step sends.
func TestMemoryOfACollectorIsBounded(t *testing.T) {
	for name, add := range map[string]func(c *collector, i int){
		"7,000 header fields": func(c *collector, i int) {
			headers := func() map[string]string {
				all := map[string]string{}
				for i := range 7000 {
					all[fmt.Sprintf("h%04d", i)] = ""
				}
				return all
			}
			c.addEntry(entryKey{index: i}, HTTPEntry{Headers: headers(), ResponseHeaders: headers()})
		},
		"texts of 256 KiB": func(c *collector, i int) {
			text := strings.Repeat("x", 256<<10)
			c.addEntry(entryKey{index: i}, HTTPEntry{Method: text, URL: text[1:], Body: &text, ResponseBody: &text,
				RequestErrorType: &text})
			c.addLog(strings.Repeat("x", 256<<10), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inUse := func() uint64 {
				var memory runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&memory)
				return memory.HeapAlloc
			}
			before := inUse()
			c := newCollector(Execution{})
			for i := range maxRequests {
				add(c, i)
			}
			if held := int64(inUse() - before); len(c.entries) == 0 || held > maxRecord {
				t.Errorf("%d entries hold %d bytes", len(c.entries), held)
			}
			runtime.KeepAlive(c)
		})
	}
}

func TestFewLargeDocumentsAreDecodedAtOnce(t *testing.T) {
	var all sync.WaitGroup
	var now, most atomic.Int64
	for range 20 {
		all.Go(func() {
			defer takeTurn(largeDocument)()
			most.Store(max(most.Load(), now.Add(1)))
			runtime.Gosched()
			now.Add(-1)
		})
	}
	all.Wait()
	if most.Load() > decoders {
		t.Errorf("%d at once", most.Load())
	}
	takeTurn(largeDocument - 1) // takes no turn, so there is none to return
	if len(turns) != 0 {
		t.Errorf("%d turns are in use", len(turns))
	}
}

func TestSizeOfInputsIsTheMemoryTheyUse(t *testing.T) {
	for name, document := range map[string]string{
		"empty lists": `{"x":{"t":"l","v":[` + strings.Repeat(`{"t":"l","v":[]},`, 50_000) + `{"t":"l","v":[]}]}}`,
		"numbers":     `{"x":{"t":"a[n]","v":[` + strings.Repeat(`1,`, 90_000) + `1]}}`,
		"files": `{"x":{"t":"a[f]","v":[` + strings.Repeat(`{"url":"u","name":"n","size":1},`, 5_000) +
			`{"url":"u"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			inputs, err := DecodeWireInputs([]byte(document))
			if err != nil {
				t.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > inputs.Size() || held < inputs.Size()/5 {
				t.Errorf("they use %d bytes and count as %d", held, inputs.Size())
			}
			runtime.KeepAlive(inputs)
			runtime.KeepAlive(document)
		})
	}
}

package executions

// waiting bounds what the requests of executions take that wait for a slot. Beyond the limit a business may hold no more than
// its share, the limit divided by the businesses that wait: who sends much cannot keep others from waiting too.
type waiting struct {
	limit int64
	total int64
	held  map[string]int64 // by business
}

// enter reports whether a business may have one more of size wait, and counts it.
func (w *waiting) enter(business string, size int64) bool {
	sharing := int64(len(w.held))
	if _, waits := w.held[business]; !waits {
		sharing++
	}
	if w.total+size > w.limit && w.held[business]+size > w.limit/sharing {
		return false
	}
	w.total += size
	w.held[business] += size
	return true
}

// leave undoes an enter.
func (w *waiting) leave(business string, size int64) {
	w.total -= size
	if w.held[business] -= size; w.held[business] == 0 {
		delete(w.held, business)
	}
}

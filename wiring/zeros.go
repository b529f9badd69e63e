package wiring

import (
	"cmp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// fromZero adds the series of histograms that have no value yet. Prometheus takes the first
// sample of a series for where it begins: the first removals of each new process would be
// missing from rates, and so from the objective. OTLP says where a series begins.
type fromZero struct {
	from       prometheus.Gatherer
	histograms []reconciler.Histogram
}

// Gather is prometheus.Gatherer's.
func (z fromZero) Gather() ([]*dto.MetricFamily, error) {
	families, err := z.from.Gather()
	for _, h := range z.histograms {
		name := strings.ReplaceAll(h.Name, ".", "_") + "_seconds"
		at, ok := slices.BinarySearchFunc(families, name, func(f *dto.MetricFamily, name string) int { return cmp.Compare(f.GetName(), name) })
		if !ok {
			families = slices.Insert(families, at, &dto.MetricFamily{Name: &name, Help: &h.Description, Type: dto.MetricType_HISTOGRAM.Enum()})
		}
		f := families[at]
		there := map[string]bool{}
		for _, m := range f.GetMetric() {
			there[labelsOf(m)] = true
		}
		for _, set := range h.Series {
			m := &dto.Metric{Histogram: zeros()}
			for _, kv := range set.ToSlice() {
				key, value := string(kv.Key), kv.Value.AsString()
				m.Label = append(m.Label, &dto.LabelPair{Name: &key, Value: &value})
			}
			if !there[labelsOf(m)] {
				f.Metric = append(f.Metric, m)
			}
		}
	}
	return families, err
}

// labelsOf is what tells a series; either side sorts them.
func labelsOf(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(l.GetName() + "=" + l.GetValue() + "\n")
	}
	return b.String()
}

func zeros() *dto.Histogram {
	h := &dto.Histogram{SampleCount: new(uint64), SampleSum: new(float64)}
	for _, bound := range reconciler.LagBuckets {
		h.Bucket = append(h.Bucket, &dto.Bucket{CumulativeCount: new(uint64), UpperBound: &bound})
	}
	return h
}

//! `AdamW` (Loshchilov and Hutter 2017, arXiv 1711.05101) whose state can be saved.
//!
//! candle's own keeps its moments to itself, so a run could not resume; and it neither clips gradients nor gives the
//! encoder a smaller step than the heads.

use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Storage, Tensor, Var, bail};
use rayon::prelude::*;

/// Parameters that share a learning rate and a weight decay.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) parameters: Vec<Var>,
    /// Peak learning rate.
    pub(super) learning_rate: f64,
    /// Applies to matrices; biases, norms and scales are left alone.
    pub(super) weight_decay: f64,
}

/// The optimizer and its state.
#[derive(Debug)]
pub(super) struct AdamW {
    groups: Vec<Group>,
    /// First and second moments of each parameter, in order of the groups.
    moments: Vec<[Vec<f32>; 2]>,
    n_steps: u32,
}

/// One step of one parameter, in place.
struct Step<'a> {
    /// Locked once a step: the operation is shared by contract, not by use.
    moments: Mutex<&'a mut [Vec<f32>; 2]>,
    /// What gradients are multiplied by.
    shrink: f32,
    /// What is left of a value by weight decay.
    keep: f32,
    rate: f32,
    corrections: [f32; 2],
}

const BETAS: [f32; 2] = [0.9, 0.999];
const EPS: f32 = 1e-8;
/// Largest norm of all gradients together.
const MAX_NORM: f64 = 1.0;
/// Numbers that one thread takes at a time.
const NUMBERS_PER_TASK: usize = 16_384;
/// A matrix with fewer rows is a norm's parameters.
const LEAST_MATRIX_ROWS: usize = 4;

impl AdamW {
    pub(super) fn new(groups: Vec<Group>) -> Self {
        let moments = groups
            .iter()
            .flat_map(|group| &group.parameters)
            .map(|parameter| [vec![0.0; parameter.elem_count()], vec![0.0; parameter.elem_count()]])
            .collect();
        Self { groups, moments, n_steps: 0 }
    }

    /// Every parameter, in order of the groups.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Var> {
        self.groups.iter().flat_map(|group| &group.parameters)
    }

    /// Moments of every parameter, and the number of steps so far.
    pub(super) fn state(&self) -> (&[[Vec<f32>; 2]], u32) {
        (&self.moments, self.n_steps)
    }

    /// Takes up a state that [`Self::state`] gave.
    pub(super) fn restore(&mut self, moments: Vec<[Vec<f32>; 2]>, n_steps: u32) {
        self.moments = moments;
        self.n_steps = n_steps;
    }

    /// The gradients of every parameter, in order of the groups, out of a pass back.
    pub(super) fn gradients(&self, grads: &GradStore) -> Vec<Option<Tensor>> {
        self.parameters().map(|parameter| grads.get(parameter).cloned()).collect()
    }

    /// One step along `gradients`, at `factor` times each group's learning rate.
    pub(super) fn step(&mut self, gradients: &[Option<Tensor>], factor: f64) -> Result<()> {
        let shrink = clip(gradients)?;
        self.n_steps += 1;
        let corrections = BETAS.map(|beta| 1.0 - beta.powi(self.n_steps as i32));
        let mut moments = self.moments.iter_mut().zip(gradients);
        for group in &self.groups {
            let rate = (group.learning_rate * factor) as f32;
            for (parameter, (moments, gradient)) in group.parameters.iter().zip(&mut moments) {
                let Some(grad) = gradient else { continue };
                let matrix = parameter.rank() == 2 && parameter.dim(0)? >= LEAST_MATRIX_ROWS;
                let keep = if matrix { 1.0 - rate * group.weight_decay as f32 } else { 1.0 };
                let step = Step { moments: Mutex::new(moments), shrink, keep, rate, corrections };
                if parameter.device().is_cpu() {
                    parameter.inplace_op2(&grad.contiguous()?, &step)?;
                } else {
                    let values = parameter.to_device(&Device::Cpu)?;
                    values.inplace_op2(&grad.to_device(&Device::Cpu)?.contiguous()?, &step)?;
                    parameter.set(&values.to_device(parameter.device())?)?;
                }
            }
        }
        Ok(())
    }
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, values_l: &Layout, grad: &CpuStorage, grad_l: &Layout) -> Result<()> {
        let (Some((start, end)), CpuStorage::F32(values)) = (values_l.contiguous_offsets(), values) else {
            bail!("a parameter is not contiguous f32")
        };
        let Some((from, to)) = grad_l.contiguous_offsets() else { bail!("a gradient is not contiguous") };
        let (values, grad) = (&mut values[start..end], &grad.as_slice::<f32>()?[from..to]);
        let mut moments = self.moments.lock().map_err(|_| candle_core::Error::msg("a step before panicked"))?;
        let [first, second] = &mut **moments;
        let state = first.par_iter_mut().zip(second.par_iter_mut());
        values.par_iter_mut().zip(grad).zip(state).with_min_len(NUMBERS_PER_TASK).for_each(
            |((value, grad), (m, v))| {
                let grad = grad * self.shrink;
                *m = BETAS[0] * *m + (1.0 - BETAS[0]) * grad;
                *v = BETAS[1] * *v + (1.0 - BETAS[1]) * grad * grad;
                let direction = (*m / self.corrections[0]) / ((*v / self.corrections[1]).sqrt() + EPS);
                *value = *value * self.keep - self.rate * direction;
            },
        );
        Ok(())
    }
}

/// What gradients are multiplied by, so that their norm stays within the limit.
fn clip(gradients: &[Option<Tensor>]) -> Result<f32> {
    let mut sum = 0.0;
    for gradient in gradients.iter().flatten() {
        sum += sum_of_squares(gradient)?;
    }
    let norm = sum.sqrt();
    Ok(if norm > MAX_NORM { (MAX_NORM / norm) as f32 } else { 1.0 })
}

fn sum_of_squares(gradient: &Tensor) -> Result<f64> {
    let (storage, layout) = gradient.storage_and_layout();
    if let (Storage::Cpu(numbers), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        let chunks = numbers.as_slice::<f32>()?[start..end].par_chunks(NUMBERS_PER_TASK);
        return Ok(chunks.map(|chunk| chunk.iter().map(|x| f64::from(x * x)).sum::<f64>()).sum());
    }
    Ok(f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// On a loss with small gradients, the same as candle's.
    #[test]
    fn steps_as_candle_does() {
        use candle_nn::{Optimizer as _, ParamsAdamW};
        let start = Tensor::randn(0.0_f32, 1.0, (5, 3), &Device::Cpu).unwrap();
        let (ours, theirs) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
        let group = Group { parameters: vec![ours.clone()], learning_rate: 0.01, weight_decay: 0.1 };
        let mut own = AdamW::new(vec![group]);
        let settings = ParamsAdamW { lr: 0.01, weight_decay: 0.1, ..ParamsAdamW::default() };
        let mut candle = candle_nn::AdamW::new(vec![theirs.clone()], settings).unwrap();
        let loss = |var: &Var| (var.as_tensor().powf(4.0).unwrap().mean_all().unwrap() * 0.01).unwrap();
        for _ in 0..20 {
            let gradients = own.gradients(&loss(&ours).backward().unwrap());
            own.step(&gradients, 1.0).unwrap();
            candle.backward_step(&loss(&theirs)).unwrap();
        }
        let difference = (ours.as_tensor() - theirs.as_tensor()).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(difference.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-4);
    }
}

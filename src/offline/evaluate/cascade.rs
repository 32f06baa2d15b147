//! What a cascade would have cost and answered, on rows that know the outcomes of a weak and a strong model.
//!
//! The scorer is simulated: its evidence is normal around half its separation, above zero for a right answer and below
//! for a wrong one, so that it ranks a right answer above a wrong one with the probability asked for (`policy::Scorer`,
//! the same model that decisions reckon with). Costs are in answers of the strong model. Everything else is as it was
//! measured: the outcomes, the predicted difficulties, the abilities.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::models::{ModelPair, OutcomeCase};
use crate::artifact::ModelAbility;
use crate::offline::gain::latent;
use crate::offline::metrics::resample::quantile;
use crate::offline::metrics::{Bootstrap, Estimate, mean};
use crate::policy::{Prospect, Scorer};

/// A pair to simulate cascades between: `WEAK,STRONG,RATIO`.
#[derive(Clone, Debug, PartialEq)]
pub struct CascadeSpec {
    /// The models, canonically spelt.
    pub pair: ModelPair,
    /// How many answers of the weak model one of the strong model costs.
    pub price_ratio: f64,
}

/// A pair cannot be simulated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not WEAK,STRONG,RATIO with a price ratio above 1, for example mixtral-8x7b-instruct,gpt-4-1106,25")]
pub struct BadCascadeSpec(pub String);

/// What was measured of one pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CascadeSection {
    /// The models, canonically spelt.
    pub pair: ModelPair,
    /// Their abilities by the classifier's manifest, the weak one first.
    pub abilities: [f64; 2],
    /// How many answers of the weak model one of the strong model costs.
    pub price_ratio: f64,
    /// What a score costs, in answers of the weak model.
    pub scorer_cost: f64,
    /// Rows with both outcomes and a difficulty.
    pub n: usize,
    /// Quality of always calling the weak model.
    pub weak_quality: f64,
    /// Quality of always calling the strong model.
    pub strong_quality: f64,
    /// What thresholds in hindsight give.
    pub methods: Vec<CostFigures>,
    /// What decisions of the service give, without hindsight, by how good the scorer is.
    pub service: Vec<ServiceFigures>,
}

/// One way of choosing between the two models, over all its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CostFigures {
    /// Which one.
    pub name: String,
    /// How good the scorer is, where there is one.
    pub auc: Option<f64>,
    /// How many times cheaper than the strong model alone at the same quality.
    pub cheaper_at_parity: Option<Estimate>,
    /// The same at a quality that recovers 95 % of the gap between the models.
    pub cheaper_at_95: Option<Estimate>,
    /// Cost and quality of each setting, cheapest first.
    pub curve: Vec<CostPoint>,
}

/// Cost and quality of one setting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CostPoint {
    /// Mean cost, in answers of the strong model.
    pub cost: f64,
    /// Mean quality.
    pub quality: f64,
}

/// What the service's own thresholds and its choice of when to go strong at once come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceFigures {
    /// How good the scorer is; the policy knows it.
    pub auc: f64,
    /// Quality of the final answers less that of the strong model alone.
    pub quality_gained: Option<Estimate>,
    /// How many times cheaper than the strong model alone.
    pub cheaper: Option<Estimate>,
    /// Share of rows for which the strong model was called at once: cheap first was a false economy.
    pub strong_at_once: f64,
    /// Share of rows whose weak answer was escalated.
    pub escalated: f64,
    /// Where it stands among the curves.
    pub point: CostPoint,
}

/// How good simulated scorers are.
const AUCS: [f64; 4] = [0.7, 0.8, 0.9, 0.99];
/// The one that is drawn.
const SHOWN_AUC: f64 = 0.8;
/// Settings of a curve.
const N_SETTINGS: usize = 41;
/// What a score costs, in answers of the weak model: a model of its size reads the answer.
const SCORER_COST: f64 = 1.0;
/// Share of the gap between the models that counts as nearly all of it.
const NEARLY_ALL: f64 = 0.95;

#[derive(Clone, Copy)]
struct Judged {
    weak: f64,
    strong: f64,
    p_weak: f64,
    p_strong: f64,
    noise: f64,
}

/// Cost and quality of every row under one setting.
type Setting = Vec<CostPoint>;

/// Prices in answers of the strong model.
#[derive(Clone, Copy)]
struct Prices {
    weak: f64,
    scorer: f64,
}

/// `None` where no row with scores has outcomes of both models, or the classifier knows an ability of neither.
pub(super) fn section(
    rows: &[OutcomeCase<'_>],
    spec: &CascadeSpec,
    abilities: &BTreeMap<String, ModelAbility>,
    bootstrap: &Bootstrap,
) -> Option<CascadeSection> {
    let CascadeSpec { pair, price_ratio } = spec;
    let ability = |name: &String| abilities.get(name).map(|known| known.ability);
    let known = [ability(&pair.weak)?, ability(&pair.strong)?];
    let mut rng = StdRng::seed_from_u64(bootstrap.seed);
    let judged: Vec<Judged> = rows
        .iter()
        .filter_map(|row| {
            let difficulty = latent(row.case.scores?.difficulty);
            Some(Judged {
                weak: *row.outcomes.get(&pair.weak)?,
                strong: *row.outcomes.get(&pair.strong)?,
                p_weak: sigmoid(known[0] - difficulty),
                p_strong: sigmoid(known[1] - difficulty),
                noise: normal(&mut rng),
            })
        })
        .collect();
    let prices = Prices { weak: 1.0 / price_ratio, scorer: SCORER_COST / price_ratio };
    let mut methods = vec![
        figures("direct routing by difficulty", None, &direct(&judged, prices), &judged, bootstrap)?,
        figures("oracle routing", None, &oracle(&judged, prices), &judged, bootstrap)?,
    ];
    for auc in AUCS {
        let scorer = Scorer::new(auc, prices.scorer);
        methods.push(figures("cascade", Some(auc), &cascade(&judged, prices, &scorer, true), &judged, bootstrap)?);
    }
    let scorer = Scorer::new(SHOWN_AUC, prices.scorer);
    let alone = cascade(&judged, prices, &scorer, false);
    methods.push(figures("cascade by the score alone", Some(SHOWN_AUC), &alone, &judged, bootstrap)?);
    let mixed = mixed(&judged, prices, &scorer);
    methods.push(figures("cascade or strong at once", Some(SHOWN_AUC), &mixed, &judged, bootstrap)?);
    Some(CascadeSection {
        pair: pair.clone(),
        abilities: known,
        price_ratio: *price_ratio,
        scorer_cost: SCORER_COST,
        n: judged.len(),
        weak_quality: mean(judged.iter().map(|row| row.weak))?,
        strong_quality: mean(judged.iter().map(|row| row.strong))?,
        methods,
        service: AUCS.iter().filter_map(|auc| service(&judged, prices, *auc, bootstrap)).collect(),
    })
}

/// The strong model for the prompts that gain most by it.
fn direct(judged: &[Judged], prices: Prices) -> Vec<Setting> {
    let gain: Vec<f64> = judged.iter().map(|row| row.p_strong - row.p_weak).collect();
    at_thresholds(&gain, |row, strong| {
        let row = &judged[row];
        if strong {
            CostPoint { cost: 1.0, quality: row.strong }
        } else {
            CostPoint { cost: prices.weak, quality: row.weak }
        }
    })
}

/// The strong model where it is known to be better.
fn oracle(judged: &[Judged], prices: Prices) -> Vec<Setting> {
    let gain: Vec<f64> = judged.iter().map(|row| row.strong - row.weak).collect();
    let mut settings = at_thresholds(&gain, |row, strong| {
        let row = &judged[row];
        if strong {
            CostPoint { cost: 1.0, quality: row.strong }
        } else {
            CostPoint { cost: prices.weak, quality: row.weak }
        }
    });
    // Outcomes are mostly 0 or 1: the one threshold between them is the oracle's own.
    settings.insert(
        1,
        judged
            .iter()
            .map(|row| {
                if row.strong > row.weak {
                    CostPoint { cost: 1.0, quality: row.strong }
                } else {
                    CostPoint { cost: prices.weak, quality: row.weak }
                }
            })
            .collect(),
    );
    settings
}

/// The weak model first, then the strong one where the score, with or without what was predicted, promises most.
fn cascade(judged: &[Judged], prices: Prices, scorer: &Scorer, informed: bool) -> Vec<Setting> {
    let gain: Vec<f64> = judged
        .iter()
        .map(|row| {
            let evidence = scorer.evidence(row.weak, row.noise);
            if informed { row.p_strong - scorer.score(row.p_weak, evidence) } else { -evidence }
        })
        .collect();
    at_thresholds(&gain, |row, strong| {
        let row = &judged[row];
        let first = prices.weak + prices.scorer;
        if strong {
            CostPoint { cost: first + 1.0, quality: row.strong }
        } else {
            CostPoint { cost: first, quality: row.weak }
        }
    })
}

/// For every worth of quality the best of: the weak model alone, a cascade, the strong model at once.
fn mixed(judged: &[Judged], prices: Prices, scorer: &Scorer) -> Vec<Setting> {
    // What an answer of the strong model costs, in quality; from nothing to all there is.
    let worths = (0..N_SETTINGS).map(|step| (step as f64 / (N_SETTINGS - 1) as f64).powi(3));
    let setting = |worth: f64| {
        let choose = |row: &Judged| {
            let (weak, strong) = (
                Prospect { success: row.p_weak, cost_usd: prices.weak },
                Prospect { success: row.p_strong, cost_usd: 1.0 },
            );
            let threshold = row.p_strong - worth;
            let estimate = scorer.at_threshold(weak, strong, threshold);
            let values = [
                (row.p_weak - worth * prices.weak, 0),
                (estimate.quality - worth * estimate.cost_usd, 1),
                (row.p_strong - worth, 2),
            ];
            let best = values.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, which)| which);
            match best {
                0 => CostPoint { cost: prices.weak, quality: row.weak },
                1 => played(row, prices, scorer, threshold),
                _ => CostPoint { cost: 1.0, quality: row.strong },
            }
        };
        judged.iter().map(choose).collect()
    };
    worths.map(setting).collect()
}

/// A cascade with a threshold on the score, as it would have gone.
fn played(row: &Judged, prices: Prices, scorer: &Scorer, threshold: f64) -> CostPoint {
    let score = scorer.score(row.p_weak, scorer.evidence(row.weak, row.noise));
    let first = prices.weak + prices.scorer;
    if score >= threshold {
        CostPoint { cost: first, quality: row.weak }
    } else {
        CostPoint { cost: first + 1.0, quality: row.strong }
    }
}

fn service(judged: &[Judged], prices: Prices, auc: f64, bootstrap: &Bootstrap) -> Option<ServiceFigures> {
    let scorer = Scorer::new(auc, prices.scorer);
    let (mut at_once, mut escalated) = (0_usize, 0_usize);
    let played: Setting = judged
        .iter()
        .map(|row| {
            let strong = Prospect { success: row.p_strong, cost_usd: 1.0 };
            let estimate = scorer.at_parity(Prospect { success: row.p_weak, cost_usd: prices.weak }, strong);
            if estimate.cost_usd >= strong.cost_usd {
                at_once += 1;
                return CostPoint { cost: 1.0, quality: row.strong };
            }
            let point = self::played(row, prices, &scorer, estimate.threshold);
            escalated += usize::from(point.cost > 1.0);
            point
        })
        .collect();
    let [quality_gained, cheaper] = bootstrap.estimates(judged.len(), |rows| {
        let point = average(&played, rows);
        let strong = mean(rows.iter().map(|row| judged[*row].strong));
        [point.zip(strong).map(|(point, strong)| point.quality - strong), point.map(|point| 1.0 / point.cost)]
    });
    let n = judged.len() as f64;
    let all: Vec<usize> = (0..judged.len()).collect();
    Some(ServiceFigures {
        auc,
        quality_gained,
        cheaper,
        strong_at_once: at_once as f64 / n,
        escalated: escalated as f64 / n,
        point: average(&played, &all)?,
    })
}

/// One setting for each quantile of `gain`: the strong model for those at or above it.
fn at_thresholds(gain: &[f64], play: impl Fn(usize, bool) -> CostPoint) -> Vec<Setting> {
    let mut sorted = gain.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let edges = (0..N_SETTINGS).map(|step| 1.0 - step as f64 / (N_SETTINGS - 1) as f64);
    let thresholds = edges.map(|share| match share {
        share if share >= 1.0 => f64::INFINITY,
        share => quantile(&sorted, share).unwrap_or(f64::INFINITY),
    });
    thresholds
        .map(|threshold| gain.iter().enumerate().map(|(row, gain)| play(row, *gain >= threshold)).collect())
        .collect()
}

fn figures(
    name: &str,
    auc: Option<f64>,
    settings: &[Setting],
    judged: &[Judged],
    bootstrap: &Bootstrap,
) -> Option<CostFigures> {
    let curve = |rows: &[usize]| -> Option<Vec<CostPoint>> {
        let mut points: Vec<CostPoint> =
            settings.iter().map(|setting| average(setting, rows)).collect::<Option<_>>()?;
        points.sort_by(|a, b| a.cost.total_cmp(&b.cost));
        Some(points)
    };
    let [cheaper_at_parity, cheaper_at_95] = bootstrap.estimates(judged.len(), |rows| {
        let qualities =
            mean(rows.iter().map(|row| judged[*row].weak)).zip(mean(rows.iter().map(|row| judged[*row].strong)));
        let cheaper = |target: f64| curve(rows).and_then(|curve| cost_of(&curve, target)).map(|cost| 1.0 / cost);
        match qualities {
            Some((weak, strong)) => [cheaper(strong), cheaper(weak + NEARLY_ALL * (strong - weak))],
            None => [None; 2],
        }
    });
    let all: Vec<usize> = (0..judged.len()).collect();
    Some(CostFigures { name: name.to_owned(), auc, cheaper_at_parity, cheaper_at_95, curve: curve(&all)? })
}

/// The lowest cost at which a curve reaches `target`, between its points by a straight line; `None`: it never does.
fn cost_of(curve: &[CostPoint], target: f64) -> Option<f64> {
    let mut before: Option<CostPoint> = None;
    for point in curve {
        if point.quality >= target {
            return Some(match before {
                Some(before) if point.quality > before.quality => {
                    let share = (target - before.quality) / (point.quality - before.quality);
                    before.cost + share * (point.cost - before.cost)
                }
                _ => point.cost,
            });
        }
        before = Some(*point);
    }
    None
}

fn average(setting: &[CostPoint], rows: &[usize]) -> Option<CostPoint> {
    let points = || rows.iter().filter_map(|row| setting.get(*row));
    Some(CostPoint {
        cost: mean(points().map(|point| point.cost))?,
        quality: mean(points().map(|point| point.quality))?,
    })
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let (radius, angle) = (rng.random::<f64>().max(f64::MIN_POSITIVE), rng.random::<f64>());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

// === impl CascadeSpec ===

impl std::str::FromStr for CascadeSpec {
    type Err = BadCascadeSpec;

    fn from_str(value: &str) -> Result<Self, BadCascadeSpec> {
        let bad = || BadCascadeSpec(value.to_owned());
        let [weak, strong, ratio] = value.split(',').collect::<Vec<_>>()[..] else { return Err(bad()) };
        let price_ratio: f64 = ratio.trim().parse().map_err(|_| bad())?;
        let name = super::models::canonical_name;
        let pair = ModelPair { weak: name(weak), strong: name(strong) };
        let whole = price_ratio.is_finite() && price_ratio > 1.0 && !pair.weak.is_empty() && !pair.strong.is_empty();
        if whole { Ok(Self { pair, price_ratio }) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Case;
    use super::super::models::canonical_outcomes;
    use super::super::tests::{row, scores};
    use super::*;
    use crate::offline::dataset::Row;
    use crate::offline::scored::Scores;

    fn spec() -> CascadeSpec {
        "weak,strong,10".parse().unwrap()
    }

    /// Rows whose outcomes follow the predicted probabilities, or, where these say nothing, chance alone.
    fn section_of(n: usize, informative: bool) -> CascadeSection {
        let mut rng = StdRng::seed_from_u64(3);
        let abilities: BTreeMap<String, ModelAbility> = [("weak", 0.5), ("strong", 2.5)]
            .map(|(name, ability)| (name.to_owned(), ModelAbility { ability, standard_error: 0.1, answers: 9 }))
            .into();
        let difficulties: Vec<f64> = (0..n).map(|_| rng.random_range(0.02..0.98)).collect();
        let rows: Vec<Row> = difficulties
            .iter()
            .enumerate()
            .map(|(i, difficulty)| {
                let mut row = row(&format!("s/{i}"), "text");
                let difficulty = if informative { *difficulty } else { rng.random_range(0.02..0.98) };
                let z = (difficulty / (1.0 - difficulty)).ln();
                let mut right = |ability: f64| Some(f32::from(u8::from(rng.random::<f64>() < sigmoid(ability - z))));
                row.outcomes = [("weak".to_owned(), right(0.5)), ("strong".to_owned(), right(2.5))].into();
                row
            })
            .collect();
        let scores: Vec<Scores> = difficulties.iter().map(|d| scores("code", [1.0, 0.0, 0.0], *d)).collect();
        let cases: Vec<Case<'_>> =
            rows.iter().zip(&scores).map(|(row, scores)| Case { row, scores: Some(scores) }).collect();
        let bootstrap = Bootstrap { n_draws: 30, ..Bootstrap::default() };
        section(&canonical_outcomes(&cases), &spec(), &abilities, &bootstrap).unwrap()
    }

    fn cheaper(section: &CascadeSection, name: &str, auc: Option<f64>) -> f64 {
        let found = section.methods.iter().find(|method| method.name == name && method.auc == auc).unwrap();
        found.cheaper_at_parity.map_or(0.0, |estimate| estimate.value)
    }

    #[test]
    fn better_scorers_save_more_and_the_oracle_most() {
        let section = section_of(3_000, true);
        let direct = cheaper(&section, "direct routing by difficulty", None);
        let by_auc = AUCS.map(|auc| cheaper(&section, "cascade", Some(auc)));
        assert!(by_auc.windows(2).all(|pair| pair[0] < pair[1]), "{by_auc:?}");
        assert!(by_auc[2] > direct && by_auc[3] > 1.6, "{by_auc:?} against {direct}");
        assert!(cheaper(&section, "oracle routing", None) > by_auc[3]);
        let alone = cheaper(&section, "cascade by the score alone", Some(0.8));
        assert!(by_auc[1] > alone - 0.05, "difficulty adds to the score: {by_auc:?}, {alone} without");
    }

    #[test]
    fn what_the_service_promises_is_kept_where_its_probabilities_are_right() {
        let section = section_of(8_000, true);
        for figures in &section.service {
            let gained = figures.quality_gained.unwrap().value;
            assert!(gained.abs() < 0.015, "as good as the strong model alone: {figures:?}");
        }
        let cheaper: Vec<f64> = section.service.iter().map(|figures| figures.cheaper.unwrap().value).collect();
        assert!(cheaper.windows(2).all(|pair| pair[0] < pair[1]), "{cheaper:?}");
        assert!(section.service[0].strong_at_once > section.service[3].strong_at_once, "a bad scorer is not asked");
    }

    #[test]
    fn difficulties_that_say_nothing_make_routing_useless_and_not_the_cascade() {
        let section = section_of(3_000, false);
        let direct = cheaper(&section, "direct routing by difficulty", None);
        assert!(direct < 1.1, "{direct}");
        assert!(cheaper(&section, "cascade", Some(0.99)) > 1.5);
    }

    #[test]
    fn curves_are_read_between_their_points() {
        let curve = [(0.1, 0.5), (0.5, 0.7), (1.0, 0.7)].map(|(cost, quality)| CostPoint { cost, quality });
        assert_eq!(cost_of(&curve, 0.5), Some(0.1));
        assert!((cost_of(&curve, 0.6).unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(cost_of(&curve, 0.71), None, "never reached");
    }

    #[test]
    fn pairs_are_written_with_their_price_ratio() {
        assert_eq!(spec().pair.strong, "strong");
        for bad in ["a,b", "a,b,1", "a,b,x", ",b,3", "a,b,inf", "a,b,3,4"] {
            assert!(bad.parse::<CascadeSpec>().is_err(), "{bad}");
        }
    }
}

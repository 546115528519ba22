// Logarithms, ratios and derivatives of the modified Bessel functions I_v(x) and K_v(x), elementwise.
//
// The plan is that of the Rust core (rust/core/src/special): with r = sqrt(v^2 + x^2),
//   r >= 25        Debye's uniform expansion in 1/r, u_k(t)/v^k = p_k(t^2)/r^k with t = v/r, v eta in double-double;
//   r < 25, I      the power series as one fraction, evaluated backwards; the ratio by backward recurrence from r >= 25;
//   r < 25, K      Temme's series (x < 1) or the trapezoid rule at an order |mu| <= 1/2, then forward recurrence.
// Source: Plesner, Soerensen, Hauberg, ICS 2024, for the plan; DLMF 10.25.2, 10.32.9, 10.41.3; Temme 1975.
//
// All arithmetic is in double; the f32 kernels read and write float. Compile with --fmad=false: the error-free sums and
// products below mean what they say, and where a multiply-add is wanted it is written.

namespace {

constexpr double RADIUS = 25.0;
constexpr double SMALLEST = 2.2250738585072014e-308;

// Coefficients of p_k in rising powers of t^2, k = 1 .. 18, row after row: DLMF 10.41.10 in exact rationals, rounded.
__constant__ double U[189] = {
    // k = 1
    0.125, -0.20833333333333334,
    // k = 2
    0.0703125, -0.4010416666666667, 0.3342013888888889,
    // k = 3
    0.0732421875, -0.8912109375, 1.8464626736111112, -1.0258125964506173,
    // k = 4
    0.112152099609375, -2.3640869140625, 8.78912353515625, -11.207002616222994, 4.669584423426247,
    // k = 5
    0.22710800170898438, -7.368794359479632, 42.53499874538846, -91.81824154324002, 84.63621767460073,
    -28.212072558200244,
    // k = 6
    0.5725014209747314, -26.491430486951554, 218.1905117442116, -699.5796273761325, 1059.9904525279999,
    -765.2524681411817, 212.57013003921713,
    // k = 7
    1.7277275025844574, -108.09091978839466, 1200.9029132163525, -5305.646978613403, 11655.393336864534,
    -13586.550006434138, 8061.722181737309, -1919.457662318407,
    // k = 8
    6.074042001273483, -493.915304773088, 7109.514302489364, -41192.65496889755, 122200.46498301746,
    -203400.17728041555, 192547.00123253153, -96980.59838863752, 20204.29133096615,
    // k = 9
    24.380529699556064, -2499.8304818112097, 45218.76898136273, -331645.1724845636, 1268365.2733216248,
    -2813563.226586534, 3763271.297656404, -2998015.9185381066, 1311763.6146629772, -242919.18790055133,
    // k = 10
    110.01714026924674, -13886.08975371704, 308186.4046126624, -2785618.1280864547, 13288767.166421818,
    -37567176.66076335, 66344512.27472903, -74105148.21153265, 50952602.49266464, -19706819.118432228,
    3284469.853072038,
    // k = 11
    551.3358961220206, -84005.43360302408, 2243768.1779224495, -24474062.72573873, 142062907.7975331,
    -495889784.2750303, 1106842816.8230145, -1621080552.1083372, 1553596899.57058, -939462359.6815784,
    325573074.18576574, -49329253.66450996,
    // k = 12
    3038.090510922384, -549842.3275722887, 17395107.553978164, -225105661.88941526, 1559279864.8792574,
    -6563293792.619285, 17954213731.1556, -33026599749.800724, 41280185579.753975, -34632043388.158775,
    18688207509.295826, -5866481492.051847, 814789096.1183121,
    // k = 13
    18257.755474293175, -3871833.442572613, 143157876.71888897, -2167164983.223795, 17634730606.83497,
    -87867072178.02327, 287900649906.1506, -645364869245.3765, 1008158106865.3821, -1098375156081.2233,
    819218669548.5773, -399096175224.4665, 114498237732.0258, -14679261247.695616,
    // k = 14
    118838.42625678325, -29188388.122220814, 1247009293.5127103, -21822927757.529224, 205914503232.41,
    -1196552880196.1816, 4612725780849.132, -12320491305598.287, 23348364044581.84, -31667088584785.16,
    30565125519935.32, -20516899410934.438, 9109341185239.898, -2406297900028.504, 286464035717.679,
    // k = 15
    832859.3040162893, -234557963.52225152, 11465754899.448236, -229619372968.24646, 2485000928034.0854,
    -16634824724892.48, 74373122908679.14, -232604831188939.94, 523054882578444.6, -857461032982895.0,
    1026955196082762.5, -889496939881026.5, 542739664987659.75, -221349638702525.2, 54177510755106.05,
    -6019723417234.006,
    // k = 16
    6252951.493434797, -2001646928.1917763, 110997405139.17902, -2521558474912.8545, 31007436472896.46,
    -236652530451649.25, 1212675804250347.5, -4379325838364015.5, 1.1486706978449752e+16, -2.2268225133911144e+16,
    3.213827526858624e+16, -3.4447226006485144e+16, 2.705471130619708e+16, -1.5129826322457682e+16,
    5705782159023671.0, -1301012723549699.5, 135522158703093.69,
    // k = 17
    50069589.531988926, -18078220384.658062, 1128709145410.874, -28863837631414.76, 400044457043036.25,
    -3450385511846272.5, 2.0064271476309532e+16, -8.270945651585064e+16, 2.4960365126160426e+17,
    -5.62631788074636e+17, 9.575335098169139e+17, -1.2336116931960694e+18, 1.1961991142756308e+18,
    -8.592577980317548e+17, 4.4347954614171904e+17, -1.5552983504313904e+17, 3.3192764720355224e+16,
    -3254192619642669.0,
    // k = 18
    425939216.5047669, -172283238717.3505, 12030115826419.191, -343965304743075.94, 5335106978708839.0,
    -5.1605093193485224e+16, 3.37667624979061e+17, -1.5736434765189599e+18, 5.402894876715982e+18,
    -1.3970803516443374e+19, 2.757282981650519e+19, -4.178861444656839e+19, 4.859942729324836e+19,
    -4.301555703831444e+19, 2.846521225167657e+19, -1.3639420410571592e+19, 4.47020096401231e+18,
    -8.966114215270463e+17, 8.30195760673191e+16,
};

// Trapezoid rules for int exp(-x (cosh t - 1)) cosh(mu t) dt: cosh t - 1, e^t, e^-t at t = step, 2 step, ...
__constant__ double NEAR[66] = {  // step 0.2
    0.020066755619075848, 1.2214027581601699, 0.8187307530779818, 0.08107237183845482, 1.4918246976412703,
    0.6703200460356393, 0.18546521824226772, 1.822118800390509, 0.5488116360940264, 0.33743494630484466,
    2.225540928492468, 0.44932896411722156, 0.5430806348152438, 2.7182818284590455, 0.3678794411714423,
    0.8106555673243749, 3.3201169227365477, 0.3011942119122021, 1.1508984653931407, 4.0551999668446745,
    0.24659696394160646, 1.5774644711948853, 4.953032424395115, 0.20189651799465538, 2.1074731763172667,
    6.0496474644129465, 0.16529888822158653, 2.762195691083632, 7.389056098930651, 0.13533528323661267,
    3.567908328898228, 9.025013499434122, 0.11080315836233387, 4.556947166965508, 11.023176380641603,
    0.0907179532894125, 5.769005806608013, 13.463738035001692, 0.07427357821433386, 7.252728416861135,
    16.44464677109705, 0.06081006262521796, 9.067661995777767, 20.08553692318767, 0.04978706836786394,
    11.28664620054386, 24.532530197109352, 0.04076220397836621, 13.998736658678672, 29.964100047397018,
    0.03337326996032607, 17.312779083062644, 36.598234443677995, 0.027323722447292555, 21.361777632578498,
    44.70118449330083, 0.02237077185616559, 26.308232836016494, 54.59815003314425, 0.018315638888734175,
    32.35066330887282, 66.68633104092515, 0.014995576820477703, 39.7315730024356, 81.45086866496814,
    0.012277339903068438,
};
__constant__ double MIDDLE[51] = {  // step 0.18181818181818182
    0.01657451005528323, 1.1993961020353858, 0.8337529180751806, 0.0668474689882783, 1.438551009577678,
    0.6951439283988787, 0.15248537612567273, 1.725392473466536, 0.5795782787848095, 0.2763270441733908,
    2.0694290071569563, 0.48322508118982543, 0.44247770307607254, 2.482065084623012, 0.402890321529133,
    0.6564450843670666, 2.976979187494971, 0.33591098123916235, 0.9253219970717936, 3.5705772333219383,
    0.28006676082164883, 1.2580214473767695, 4.2825364156626256, 0.23350647909091338, 1.6655720960509282,
    5.1364574837703465, 0.19468670833151017, 2.161483847743244, 6.16064708430464, 0.16232061118184815,
    2.762195691083632, 7.38905609893065, 0.13533528323661267, 3.487620635047637, 8.862405082778217,
    0.11283618731705689, 4.3618058056914295, 10.629534110942785, 0.09407750044007386, 5.413729584817039,
    12.749021779116948, 0.07843739051713067, 6.6782622149334845, 15.291127026637108, 0.06539740322986018,
    8.197321713626962, 18.34011815147649, 0.05452527577743516, 10.021263414768809, 21.99706622174933,
    0.04546060778829053,
};
__constant__ double FAR[48] = {  // step 0.14285714285714285
    0.010221447322644689, 1.1535649948951077, 0.8668778997501816, 0.041094745261317955, 1.33071219744735,
    0.751477293075286, 0.09325103339313273, 1.5350630092552098, 0.6514390575310556, 0.16775653722145706,
    1.770794952435155, 0.5647181220077593, 0.26613436491154757, 2.042727070266142, 0.48954165955695317,
    0.39039564403030524, 2.3564184423836605, 0.42437284567695, 0.5430806348152437, 2.718281828459045,
    0.36787944117144233, 0.7273106604468965, 3.1357147635698226, 0.31890655732397044, 0.9468519159297504,
    3.6172507852299365, 0.2764530466295644, 1.2061924600199359, 4.172733883598096, 0.23965103644177582,
    1.5106339641375408, 4.813519741131481, 0.20774818714360085, 1.8664000938768945, 5.552707875605837,
    0.1800923121479524, 2.2807637387466215, 6.405409432177271, 0.1561180453159711, 2.762195691083631,
    7.3890560989306495, 0.1353352832366127, 3.320537813568425, 8.5237564610426, 0.11731916609425079,
    3.9672042353869874, 9.832707078469747, 0.10170139230422684,
};

// (1/Gamma(1-m) -+ 1/Gamma(1+m)) / (2m, 2) in m^2 for |m| <= 1/2; minimax, error 3e-21.
__constant__ double GAMMA_1[9] = {
    -0.5772156649015329, 0.04200263503409524, 0.04219773455554432, -0.00721894324666241, 0.00021524167410079872,
    2.0134854943949705e-05, -1.133028335412651e-06, -6.111757978367613e-09, 1.1721449739554431e-09,
};
__constant__ double GAMMA_2[9] = {
    1.0, -0.6558780715202539, 0.1665386113822917, -0.009621971527885256, -0.0011651675916885258,
    0.000128050280414672, -1.25048005653128e-06, -2.0568716058005746e-07, 5.116656432802304e-09,
};
// z J(z) in (z-1)/(z+1) for z in [1, 26], J Binet's function (DLMF 5.11.1); minimax, error 3e-19.
__constant__ double BINET[20] = {
    0.08106146679532726, 0.007691603787588517, -0.011302922122049627, 0.010620410933241545, -0.008215612308741235,
    0.006093361369740323, -0.004649326918760283, 0.0036505269333512993, -0.0029276199404957124, 0.002393041026600726,
    -0.001978478996224038, 0.0016301641768917824, -0.0013036518031227763, 0.000971799346501011, -0.0006422026640091392,
    0.0003557258033296796, -0.0001551013765767017, 4.915156390916617e-05, -9.966331591120743e-06,
    9.640584288305014e-07,
};
// (log((1+s)/(1-s)) - 2s) / s^3 and (... - 2s - 2s^3/3) / s^5 in s^2; minimax.
__constant__ double LOG[8] = {
    0.6666666666666666, 0.4000000000000088, 0.2857142857080323, 0.2222222239180047, 0.18181795630884753,
    0.15386240205813478, 0.13268759668560612, 0.13086767009948175,
};
__constant__ double LOG_TAIL[8] = {
    0.4, 0.28571428571429364, 0.22222222221655885, 0.18181818335392802, 0.1538459496251843, 0.1333480469384731,
    0.11706236339491206, 0.11723178623876518,
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7FF0000000000000LL); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7FF8000000000000LL); }

// Error-free arithmetic

struct Pair {
    double hi, lo;
};

constexpr Pair LN_2 = {0.6931471803691238, 1.9082149292705877e-10};  // hi ends in zeros: times an exponent it is exact
constexpr Pair HALF_LOG_TWO_PI = {0.9189385332046728, -3.8782941580672414e-17};
constexpr Pair HALF_LOG_HALF_PI = {0.22579135264472744, -6.4622584878775846e-18};

__device__ __forceinline__ Pair two_sum(double a, double b) {
    const double hi = a + b, of_b = hi - a;
    return {hi, (a - (hi - of_b)) + (b - of_b)};
}
__device__ __forceinline__ Pair fast_two_sum(double a, double b) {
    const double hi = a + b;
    return {hi, b - (hi - a)};
}
__device__ __forceinline__ Pair two_product(double a, double b) {
    const double hi = a * b;
    return {hi, fma(a, b, -hi)};
}
__device__ __forceinline__ Pair times(Pair a, double b) {
    const Pair p = two_product(a.hi, b);
    return {p.hi, fma(a.lo, b, p.lo)};
}
__device__ __forceinline__ Pair plus(Pair a, Pair b) {
    const Pair s = two_sum(a.hi, b.hi);
    return {s.hi, s.lo + (a.lo + b.lo)};
}
__device__ __forceinline__ Pair negate(Pair a) { return {-a.hi, -a.lo}; }
__device__ __forceinline__ double value(Pair a) { return a.hi + a.lo; }

template <int N>
__device__ __forceinline__ double polynomial(const double (&c)[N], double x) {
    double sum = c[N - 1];
    for (int k = N - 2; k >= 0; --k) sum = fma(sum, x, c[k]);
    return sum;
}
template <int N>
__device__ __forceinline__ double derivative_of(const double (&c)[N], double x) {
    double sum = (N - 1) * c[N - 1];
    for (int k = N - 2; k >= 1; --k) sum = fma(sum, x, k * c[k]);
    return sum;
}

// 2^n for whole n in [-1022, 1023]
__device__ __forceinline__ double power_of_2(int n) {
    return __longlong_as_double((long long)(n + 1023) << 52);
}

// y = m 2^e with m in [sqrt(1/2), sqrt(2)), y positive and normal
__device__ __forceinline__ double split_exponent(double y, int& e) {
    const long long bits = __double_as_longlong(y), half = 0x3FE6A09E667F3BCCLL;
    e = int((bits - half) >> 52);
    return __longlong_as_double(bits - ((long long)e << 52));
}

// log y as a whole multiple of ln 2 and the rest; error below 1e-16
__device__ __forceinline__ Pair log_parts(double y) {
    int e;
    const double f = split_exponent(y, e) - 1.0;
    const double s = f / (f + 2.0), z = s * s, half = 0.5 * f * f;
    const double tail = fma(s, fma(z, polynomial(LOG, z), half), e * LN_2.lo);
    return {e * LN_2.hi, f - (half - tail)};
}

// log(y.hi + y.lo) in double-double
__device__ __forceinline__ Pair log_pair(Pair y) {
    int e;
    const double m = split_exponent(y.hi, e);
    const double m_lo = y.lo * power_of_2(-e);
    const double f = m - 1.0;
    const Pair g = two_sum(m, 1.0);
    const double inverse = 1.0 / g.hi, s = f * inverse;
    const double s_lo = (fma(-s, g.hi, f) + fma(-s, g.lo, m_lo * (1.0 - s))) * inverse;
    const Pair z = two_product(s, s);
    const double z_lo = fma(s + s, s_lo, z.lo);
    const Pair cube = two_product(z.hi, s);
    const double cube_lo = fma(z.hi, s_lo, fma(z_lo, s, cube.lo));
    const Pair third = two_product(cube.hi, 0.6666666666666666);
    const double third_lo = fma(cube_lo, 0.6666666666666666, fma(cube.hi, 3.700743415417188e-17, third.lo));
    const double tail = fma(z.hi * cube.hi, polynomial(LOG_TAIL, z.hi), third_lo);
    const Pair odd = fast_two_sum(s + s, third.hi), sum = fast_two_sum(e * LN_2.hi, odd.hi);
    return {sum.hi, sum.lo + fma(double(e), LN_2.lo, odd.lo + (tail + (s_lo + s_lo)))};
}

// The uniform expansion, r >= 25. Arguments whose squares leave the range are met as (v, x) * scale; a tiny x enters
// the logarithm as lifted_x = x * scale * 2^lift, never rounded.

struct Frame {
    double v, x;
    Pair r, w;  // hypot(v, x) and v + r
    double inverse_r, t2, scale, lifted_x, lift;
    int terms;
};

__device__ __forceinline__ Frame frame_of(double v, double x) {
    Frame f;
    const double down = power_of_2(-600), up = power_of_2(600);
    f.scale = fmax(v, x) > 1e150 ? down : 1.0;
    // So many powers of two that lifted_x over v + r stays normal.
    const bool far = f.scale != 1.0;
    f.lift = (x < 1e-100 ? 600.0 : 0.0) + (far && x < 1e100 ? 600.0 : 0.0);
    f.lifted_x = x < 1e-100 ? x * up : !far || x < 1e100 ? x : x * down;
    f.v = v *= f.scale;
    f.x = x *= f.scale;
    const Pair square = plus(two_product(v, v), two_product(x, x));
    const double hi = sqrt(square.hi);
    f.inverse_r = 1.0 / hi;
    const double lo = (fma(-hi, hi, square.hi) + square.lo) * (f.inverse_r * 0.5);
    const Pair sum = fast_two_sum(hi, v);
    f.r = {hi, lo};
    f.w = {sum.hi, sum.lo + lo};
    const double t = v * f.inverse_r;
    f.t2 = t * t;
    const double radius = f.scale == 1.0 ? hi : 1e150;
    f.terms = radius < 44.0 ? 18 : radius < 111.0 ? 12 : radius < 622.0 ? 8 : radius < 10300.0 ? 5 : 3;
    return f;
}

// log(x / (v + r))
__device__ __forceinline__ Pair log_ratio(const Frame& f) {
    const double inverse = 1.0 / f.w.hi, q = f.lifted_x * inverse;
    const double rest = fma(-q, f.w.lo, fma(-q, f.w.hi, f.lifted_x));
    const Pair log = log_pair({q, rest * inverse});
    return f.lift == 0.0 ? log : plus(log, {-f.lift * LN_2.hi, -f.lift * LN_2.lo});
}

// Sums over k of p_k(t^2) / (sign r)^k without the first term, and the same of what derivatives make of it:
// W[k][j] = U[k][j] (1/2 + k + 2j), by which the expansions of I and I' differ; G[k], the derivative in v.
enum Table { OF_U, OF_W, OF_G };

template <Table TABLE>
__device__ __forceinline__ double debye_sum(const Frame& f, double sign) {
    const double rho = f.inverse_r * sign * f.scale;
    double sum = 0.0;
    for (int k = f.terms; k >= 1; --k) {
        const double* row = U + (k * (k + 1) / 2 - 1);
        double term = 0.0;
        for (int j = k; j >= 0; --j) {
            double c = row[j];
            if (TABLE == OF_W) c *= 0.5 + k + 2 * j;
            if (TABLE == OF_G) c = (j < k ? 2 * (j + 1) * row[j + 1] : 0.0) - (2 * j + k) * c;
            term = fma(term, f.t2, c);
        }
        sum = fma(sum, rho, term);
    }
    return sum * rho;
}

__device__ __forceinline__ double log1p_small(double z) {  // |z| <= 0.0065
    double sum = -0.125;
    for (int k = 7; k >= 1; --k) sum = fma(sum, z, (k % 2 ? 1.0 : -1.0) / k);
    return z * sum;
}

__device__ double uniform_log(const Frame& f, bool second_kind, bool scaled) {
    Pair exponent = times(log_ratio(f), f.v);
    if (scaled) {
        const Pair gap = two_sum(f.r.hi, -f.x);
        exponent = plus(exponent, {gap.hi, gap.lo + f.r.lo});
    } else {
        exponent = plus(exponent, f.r);
    }
    const double back = 1.0 / f.scale;
    exponent = {exponent.hi * back, exponent.lo * back};
    if (second_kind) exponent = negate(exponent);
    const double sign = second_kind ? -1.0 : 1.0;
    const Pair constant = second_kind ? HALF_LOG_HALF_PI : negate(HALF_LOG_TWO_PI);
    const Pair log_r = log_parts(f.r.hi);
    const double log_scale = f.scale == 1.0 ? 0.0 : -600.0 * 0.6931471805599453;
    const Pair front = two_sum(constant.hi, -0.5 * log_r.hi);
    const double sum = log1p_small(debye_sum<OF_U>(f, sign));
    const double rest = fma(-0.5, log_r.lo - log_scale, sum + (front.lo + constant.lo));
    const Pair total = two_sum(exponent.hi, front.hi);
    return total.hi + (total.lo + (exponent.lo + rest));
}

// W / U, by which the logarithmic derivative differs from that of the leading term
__device__ __forceinline__ double correction(const Frame& f, double sign) {
    return (0.5 + debye_sum<OF_W>(f, sign)) / (1.0 + debye_sum<OF_U>(f, sign));
}

// I_{v+1} / (x I_v) = 1/(v + r) - W/(U r^2), with the scaled x
__device__ double uniform_ratio_over_x(const Frame& f) {
    return 1.0 / f.w.hi - correction(f, 1.0) * (f.inverse_r * f.scale) * f.inverse_r;
}

__device__ double uniform_complement(const Frame& f) {
    const Pair gap = two_sum(f.r.hi, -f.x);
    const double first = ((gap.hi + f.v) + (gap.lo + f.r.lo)) / f.w.hi;
    return fma(f.x, correction(f, 1.0) * (f.inverse_r * f.scale) * f.inverse_r, first);
}

// x K_{v-1} / K_v, scaled
__device__ double uniform_k_quotient(const Frame& f) {
    const double cos = f.x * f.inverse_r;
    return f.x * (f.x / f.w.hi) + correction(f, -1.0) * (cos * cos) * f.scale;
}

// (K_{v+1} / K_v - 1) x, scaled
__device__ double uniform_k_excess(const Frame& f) {
    const Pair gap = two_sum(f.r.hi, -f.x);
    const double cos = f.x * f.inverse_r;
    return (gap.hi + f.v) + (gap.lo + f.r.lo + correction(f, -1.0) * (cos * cos) * f.scale);
}

__device__ double uniform_order_derivative(const Frame& f, bool second_kind) {
    const double sign = second_kind ? -1.0 : 1.0;
    Pair log = log_ratio(f);
    if (second_kind) log = negate(log);
    const double moving = debye_sum<OF_G>(f, sign) / (1.0 + debye_sum<OF_U>(f, sign));
    const double lever = f.v * f.inverse_r * (f.inverse_r * f.scale);
    return log.hi + fma(lever, moving - 0.5, log.lo);
}

// I for r < 25: v log(x / (2(v+1))) + (v+1) - log(2 pi (v+1))/2 - J(v+1) + log s, s the series as a fraction N / D.
// `lift` says that x was multiplied by 2^lift; the series is then 1.

__device__ __forceinline__ int series_length(double x) { return x < 1.5 ? 10 : x < 5.0 ? 17 : x < 12.0 ? 25 : 39; }

__device__ Pair small_log_i(double v, double x, double lift) {
    const Pair z = two_sum(v, 1.0);
    const double inverse = 1.0 / z.hi, ratio = 0.5 * x * inverse;
    const double left = fma(-ratio, z.lo, fma(-ratio, z.hi, 0.5 * x));
    Pair log = log_pair({ratio, left * inverse});
    if (lift != 0.0) log = plus(log, {-lift * LN_2.hi, -lift * LN_2.lo});
    const double binet = polynomial(BINET, v / (v + 2.0)) * inverse;
    const Pair log_z = log_parts(z.hi);
    const double constant = 1.0 - HALF_LOG_TWO_PI.hi;
    const double rest = ((constant - binet) - 0.5 * log_z.lo) - 0.5 * (log_z.hi + z.lo * inverse);
    Pair front = plus(times(log, v), {v, -HALF_LOG_TWO_PI.lo});
    front.lo += rest;
    if (v < SMALLEST) front = {0.0, 0.0};
    const double q = lift == 0.0 ? 0.25 * x * x : 0.0;
    double n = 1.0, d = 1.0;
    for (int k = series_length(x); k >= 2; --k) {
        d *= k * (v + k);
        n = fma(q, n, d);
    }
    const double tail = q * n / (d * (v + 1.0)), sum = 1.0 + tail;
    const Pair log_sum = log_parts(sum);
    return plus(front, {log_sum.hi, log_sum.lo + (tail - (sum - 1.0)) / sum});
}

__device__ double digamma(double z) {  // z in [1, 26]
    double below = 0.0;
    for (int k = 0; k < 10; ++k) below += 1.0 / (z + k);
    const double top = z + 10.0, inverse = 1.0 / top, s = inverse * inverse;
    double sum = 1.0 / 12.0;
    sum = fma(sum, s, -691.0 / 32760.0);
    sum = fma(sum, s, 1.0 / 132.0);
    sum = fma(sum, s, -1.0 / 240.0);
    sum = fma(sum, s, 1.0 / 252.0);
    sum = fma(sum, s, -1.0 / 120.0);
    sum = fma(sum, s, 1.0 / 12.0);
    const Pair log_top = log_parts(top);
    return log_top.hi + (log_top.lo - fma(0.5, inverse, s * sum) - below);
}

__device__ double small_order_derivative_i(double v, double x, double lift) {
    const double q = lift == 0.0 ? 0.25 * x * x : 0.0;
    double n = 1.0, d = 1.0, dn = 0.0, dd = 0.0;
    for (int k = series_length(x); k >= 1; --k) {
        const double factor = k * (v + k);
        dd = fma(dd, factor, k * d);
        d *= factor;
        dn = fma(q, dn, dd);
        n = fma(q, n, d);
    }
    const Pair log_x = log_parts(x);
    const double log_half_x = log_x.hi + (log_x.lo - (lift + 1.0) * 0.6931471805599453);
    return (log_half_x - digamma(v + 1.0)) + (dn / n - dd / d);
}

// I_{v+1} / (x I_v) from the order v + n >= 25 down by p_v = 1 / (2(v+1) + x^2 p_{v+1})
__device__ double small_ratio_over_x(double v, double x) {
    const double n = fmax(rint(RADIUS + 0.5 - v), 0.0);
    double p = uniform_ratio_over_x(frame_of(v + n, x));
    for (double step = n; step > 0.5; step -= 1.0) p = 1.0 / fma(x * x, p, 2.0 * (v + step));
    return p;
}

// K for r < 25: values and derivatives in the order at mu and mu + 1, then upwards.

struct Dual {
    double at, d;
};

struct Macdonald {
    Dual here, above;  // K_v, K_{v+1}: times (x/2)^v where `powered`, times e^x elsewhere
    double v, x, lift;
    bool powered;
    Pair log_half_x;
};

__device__ void trapezoid(double mu, double x, const double* nodes, int count, double step, Dual& k0, Dual& k1) {
    const double up = exp(mu * step), down = 1.0 / up;
    double e = 1.0, f = 1.0;
    k0 = k1 = {1.0, 0.0};
    for (int j = 0; j < count; ++j, nodes += 3) {
        const double weight = exp(-x * nodes[0]), weight_t = weight * (step * (j + 1));
        e *= up;
        f *= down;
        const double rise = e * nodes[1], fall = f * nodes[2];
        k0 = {fma(weight, e + f, k0.at), fma(weight_t, e - f, k0.d)};
        k1 = {fma(weight, rise + fall, k1.at), fma(weight_t, rise - fall, k1.d)};
    }
    const double half = 0.5 * step;
    k0 = {k0.at * half, k0.d * half};
    k1 = {k1.at * half, k1.d * half};
}

__device__ void temme(double mu, double log_half_x, double q, Dual& k0, Dual& k1) {
    const double mu2 = mu * mu, two_mu = mu + mu;
    const double gamma_1 = polynomial(GAMMA_1, mu2), gamma_2 = polynomial(GAMMA_2, mu2);
    const double d_gamma_1 = two_mu * derivative_of(GAMMA_1, mu2), d_gamma_2 = two_mu * derivative_of(GAMMA_2, mu2);
    const double plus = 1.0 / fma(-mu, gamma_1, gamma_2), minus = 1.0 / fma(mu, gamma_1, gamma_2);
    const double d_plus = -(d_gamma_2 - gamma_1 - mu * d_gamma_1) * plus * plus;
    const double d_minus = -(d_gamma_2 + gamma_1 + mu * d_gamma_1) * minus * minus;
    const double log_inverse = -log_half_x, u = 2.0 * mu * log_inverse;
    // Scaled by e^-sigma, so that only e^(-2 sigma) may grow, for mu < 0; there only its product with a tiny q is used.
    const double shrink = exp(-fmax(u, -700.0));
    double sinhc = 0.0, d_sinhc = 0.0;
    if (fabs(u) < 0.5) {  // (1 - e^-u) / u by Taylor's series
        for (int j = 17; j >= 1; --j) sinhc = fma(-u / (j + 1.0), sinhc, 1.0);
        // phi' = (e^-u - phi) / u loses digits near 0: its own series, sum (-1)^j j u^(j-1) / (j+1)!
        double term = -0.5;
        for (int j = 1; j < 17; ++j) {
            d_sinhc += term;
            term *= -u * (j + 1.0) / (j * (j + 2.0));
        }
    } else {
        sinhc = (1.0 - shrink) / u;
        d_sinhc = (shrink * (u + 1.0) - 1.0) / (u * u);
    }
    const double cosh = 0.5 * (1.0 + shrink), d_cosh = -(log_inverse * shrink), two_log = log_inverse + log_inverse;
    const double inner = fma(cosh, gamma_1, sinhc * log_inverse * gamma_2);
    const double d_inner = fma(d_cosh, gamma_1, cosh * d_gamma_1) +
                           log_inverse * fma(d_sinhc * two_log, gamma_2, sinhc * d_gamma_2);
    const double both = plus * minus, d_both = fma(d_plus, minus, plus * d_minus);
    Dual f = {both * inner, fma(d_both, inner, both * d_inner)};
    Dual p = {0.5 * plus, 0.5 * d_plus};
    Dual o = {0.5 * minus * shrink, 0.5 * shrink * (d_minus - minus * two_log)};
    k0 = f, k1 = p;
    double c = 1.0;
    for (int k = 1; k <= 9; ++k) {
        const double above = k + mu, below = k - mu, inverse = 1.0 / (above * below);
        const double sum = fma(double(k), f.at, p.at + o.at), d_sum = fma(double(k), f.d, p.d + o.d);
        f = {sum * inverse, fma(d_sum, inverse, sum * (two_mu * inverse * inverse))};
        const double for_p = above * inverse, for_o = below * inverse;
        p = {p.at * for_p, for_p * fma(p.at, for_p, p.d)};
        o = {o.at * for_o, for_o * fma(-o.at, for_o, o.d)};
        c = c * q / k;
        k0 = {fma(c, f.at, k0.at), fma(c, f.d, k0.d)};
        k1 = {fma(c, fma(-double(k), f.at, p.at), k1.at), fma(c, fma(-double(k), f.d, p.d), k1.d)};
    }
}

__device__ Macdonald macdonald(double v, double x, double lift) {
    Macdonald m;
    m.v = v, m.x = x, m.lift = lift;
    m.powered = lift != 0.0 || x < 1.0;
    const double n = rint(v), mu = v - n;
    Dual here, above;
    double a = 1.0, b = 1.0;
    if (m.powered) {
        const Pair log_x = log_parts(x);
        m.log_half_x = {fma(-(lift + 1.0), LN_2.hi, log_x.hi), fma(-(lift + 1.0), LN_2.lo, log_x.lo)};
        a = lift == 0.0 ? 0.25 * x * x : 0.0;
        temme(mu, value(m.log_half_x), a, here, above);
    } else {
        b = 2.0 / x;
        if (x < 4.0)
            trapezoid(mu, x, NEAR, 22, 0.2, here, above);
        else if (x < 10.0)
            trapezoid(mu, x, MIDDLE, 17, 2.0 / 11.0, here, above);
        else
            trapezoid(mu, x, FAR, 16, 1.0 / 7.0, here, above);
    }
    // f_{k+1} = a f_{k-1} + b k f_k; a f_{k-1} is kept as a product, finite where the factor is not
    Dual behind = {a * here.at, a * here.d};
    for (double step = 1.0; step - 0.5 < n; step += 1.0) {
        const double factor = (mu + step) * b;
        const Dual up = {fma(factor, above.at, behind.at), fma(factor, above.d, fma(b, above.at, behind.d))};
        behind = {a * above.at, a * above.d};
        here = above;
        above = up;
    }
    m.here = here, m.above = above;
    return m;
}

__device__ double small_log_k(const Macdonald& m, bool scaled) {
    Pair log = log_parts(m.here.at);
    if (m.powered) {
        const Pair power = two_product(m.v, m.log_half_x.hi);
        log = plus(log, {-power.hi, -fma(m.log_half_x.lo, m.v, power.lo)});
        if (scaled && m.lift == 0.0) log = plus(log, {m.x, 0.0});
    } else if (!scaled) {
        log = plus(log, {-m.x, 0.0});
    }
    return value(log);
}

__device__ double small_k_ratio_times_x(const Macdonald& m) {
    const double ratio = m.above.at / m.here.at;
    return m.powered ? ratio + ratio : ratio * m.x;
}

// log(a / b) - down log 2
__device__ double log_quotient(double a, double b, double down) {
    const Pair p = log_parts(a), q = log_parts(b);
    return (p.hi - q.hi - down * LN_2.hi) + (p.lo - q.lo - down * LN_2.lo);
}

// Derivatives in x: the quotients by their Riccati equations, without a power of 1/x that cancels.

__device__ double over_power(double a, double x, int power) {
    for (int i = 0; i < power; ++i) a /= x;
    return a;
}

// of log x, with the order's sign: 1, -1, 2, -6
__device__ double log_coefficient(int order) { return order == 1 ? 1.0 : order == 2 ? -1.0 : order == 3 ? 2.0 : -6.0; }

constexpr double FAR_OUT = 1e140;  // Beyond, squares leave the range and the leading term is all there is.

// The derivative of I_{v+1}/I_v of order `order` - 1 from p_k = I_{v+k+1} / (x I_{v+k})
__device__ double of_ratio(const double (&p)[4], double x, int order) {
    const double xx = x * x, d0 = p[1] - p[0], d1 = p[2] - p[1], d2 = p[3] - p[2];
    if (order == 1) return p[0] * x;
    if (order == 2) return p[0] * fma(xx, d0, 1.0);
    const double e0 = p[1] * d1 - p[0] * d0, e1 = p[2] * d2 - p[1] * d1;
    const double inner0 = fma(d0, d0, e0), inner1 = fma(d1, d1, e1), b = fma(xx, inner0, 3.0 * d0);
    if (order == 3) return p[0] * b * x;
    const double f = p[1] * fma(xx, inner1, 2.0 * d1) - p[0] * fma(xx, inner0, 2.0 * d0);
    const double rest = 3.0 * e0 + 2.0 * d0 * fma(xx, e0, d0) + f;
    return p[0] * (fma(xx, d0, 1.0) * b + xx * rest);
}

__device__ double derivative_i(double v, double x, int order, bool uniform) {
    const double first = v < SMALLEST ? 0.0 : over_power(v * log_coefficient(order), x, order);
    if (x > FAR_OUT || v > FAR_OUT) return order > 1 ? first : first + (x / frame_of(v, x).w.hi) * frame_of(v, x).scale;
    const int top = order - 1;
    double p[4];
    const double high = uniform ? uniform_ratio_over_x(frame_of(v + top, x)) : small_ratio_over_x(v + top, x);
    for (int k = 3; k >= top; --k) p[k] = high;
    for (int k = top - 1; k >= 0; --k) p[k] = 1.0 / fma(x * x, p[k + 1], 2.0 * (v + k + 1.0));
    return first + of_ratio(p, x, order);
}

// From p = x K_{v-1} / K_v
__device__ double of_quotient(double p, double v, double x, int order) {
    const double c = v + v - 1.0, p1 = fma(p, p + c, -x * x), p2 = 2.0 * p * p1 + c * (p1 - p);
    const double p3 = 2.0 * (p1 * p1 + p * p2) + c * (p2 - 2.0 * (p1 - p));
    const double h = order == 1 ? p : order == 2 ? p1 : order == 3 ? p2 : p3;
    return over_power(-(v * log_coefficient(order)) - h, x, order);
}

__device__ double derivative_k(double v, double x, int order, bool uniform, double lift) {
    if (uniform) {
        const Frame f = frame_of(v, x);
        const double p = uniform_k_quotient(f);
        if (order == 1) return -((f.v + p) / f.x);
        if (x > FAR_OUT || v > FAR_OUT) return over_power(-(v * log_coefficient(order)), x, order);
        return of_quotient(p, v, x, order);
    }
    const double p = small_k_ratio_times_x(macdonald(v, x, lift)) - (v + v);
    return of_quotient(p, v, lift == 0.0 ? x : x * power_of_2(-600), order);
}

// One function at one point

enum Function {
    LOG_IV, LOG_IVE, LOG_KV, LOG_KVE, IV_RATIO, IV_RATIO_COMPLEMENT, KV_RATIO, LOG_KV_RATIO, DLOG_IV_DV, DLOG_KV_DV,
    LOG_IV_DX1, LOG_IV_DX2, LOG_IV_DX3, LOG_IV_DX4, LOG_KV_DX1, LOG_KV_DX2, LOG_KV_DX3, LOG_KV_DX4,
};

__host__ __device__ constexpr bool second_kind(int f) {
    return f == LOG_KV || f == LOG_KVE || f == KV_RATIO || f == LOG_KV_RATIO || f == DLOG_KV_DV || f >= LOG_KV_DX1;
}

// At an infinite order, or an argument of zero or infinity
template <int F>
__device__ double limit(double v, double x) {
    const bool far = x == infinity();
    if (far && v == infinity()) return not_a_number();
    switch (F) {
        case LOG_IV: return x == 0.0 && v == 0.0 ? 0.0 : far ? infinity() : -infinity();
        case LOG_IVE: return x == 0.0 && v == 0.0 ? 0.0 : -infinity();
        case LOG_KV: case LOG_KVE: return far ? -infinity() : infinity();
        case IV_RATIO: return far ? 1.0 : 0.0;
        case IV_RATIO_COMPLEMENT: return far ? 0.0 : 1.0;
        case KV_RATIO: return far ? 1.0 : infinity();
        case LOG_KV_RATIO: return far ? 0.0 : infinity();
        case DLOG_IV_DV: return far ? -0.0 : -infinity();
        case DLOG_KV_DV: return far || v == 0.0 ? 0.0 : infinity();
    }
    const int order = (F - LOG_IV_DX1) % 4 + 1;
    if (far) return order > 1 ? 0.0 : second_kind(F) ? -1.0 : 1.0;
    if (second_kind(F)) return -log_coefficient(order) * infinity();
    if (v == 0.0) return order == 2 ? 0.5 : order == 4 ? -0.375 : 0.0;
    return log_coefficient(order) * infinity();
}

template <int F>
__device__ double evaluate(double v, double x) {
    double reflected = 1.0;
    if (isnan(v) || isnan(x) || x < 0.0) return not_a_number();
    if (v < 0.0) {  // K is even in v, I where v is whole
        const bool ratio = F >= IV_RATIO && F <= LOG_KV_RATIO;
        if (ratio || F == DLOG_IV_DV || (!second_kind(F) && v != rint(v)))
            return not_a_number();
        v = -v;
        if (F == DLOG_KV_DV) reflected = -1.0;
    }
    if (x == 0.0 || x == infinity() || v == infinity()) return reflected * limit<F>(v, x);
    const bool in_range = v < 1e150 && x < 1e150;
    const bool uniform = !in_range || fma(v, v, x * x) >= RADIUS * RADIUS;
    // A tiny argument is lifted by a power of two, exactly; squares of it are then left out.
    const double lift = !uniform && x < 1e-290 ? 600.0 : 0.0, lifted = lift == 0.0 ? x : x * power_of_2(600);
    if (F == LOG_IV || F == LOG_IVE) {
        if (uniform) return uniform_log(frame_of(v, x), false, F == LOG_IVE);
        Pair log = small_log_i(v, lifted, lift);
        if (F == LOG_IVE && lift == 0.0) log = plus(log, {-x, 0.0});
        return value(log);
    }
    if (F == LOG_KV || F == LOG_KVE)
        return uniform ? uniform_log(frame_of(v, x), true, F == LOG_KVE)
                       : small_log_k(macdonald(v, lifted, lift), F == LOG_KVE);
    if (F == IV_RATIO) {
        if (!uniform) return x * small_ratio_over_x(v, x);
        const Frame f = frame_of(v, x);
        return f.x * uniform_ratio_over_x(f);
    }
    if (F == IV_RATIO_COMPLEMENT)
        return uniform ? uniform_complement(frame_of(v, x)) : 1.0 - x * small_ratio_over_x(v, x);
    if (F == KV_RATIO || F == LOG_KV_RATIO) {
        if (uniform) {
            const Frame f = frame_of(v, x);
            const double excess = uniform_k_excess(f), less_one = excess / f.x;
            if (F == KV_RATIO) return 1.0 + less_one;
            return less_one < 0.0065 ? log1p_small(less_one) : log_quotient(f.x + excess, f.lifted_x, -f.lift);
        }
        const double times_x = small_k_ratio_times_x(macdonald(v, lifted, lift));
        if (F == LOG_KV_RATIO) return log_quotient(times_x, lifted, -lift);
        return lift == 0.0 ? times_x / x : times_x / lifted * power_of_2(600);
    }
    if (F == DLOG_IV_DV)
        return uniform ? uniform_order_derivative(frame_of(v, x), false) : small_order_derivative_i(v, lifted, lift);
    if (F == DLOG_KV_DV) {
        if (uniform) return reflected * uniform_order_derivative(frame_of(v, x), true);
        const Macdonald m = macdonald(v, lifted, lift);
        const double slope = m.here.d / m.here.at;
        return reflected * (m.powered ? slope - value(m.log_half_x) : slope);
    }
    const int order = (F - LOG_IV_DX1) % 4 + 1;
    return second_kind(F) ? derivative_k(v, lifted, order, uniform, lift) : derivative_i(v, x, order, uniform);
}

// out[i] = F(v[i * v_step], x[i * x_step]); a step of 0 is one value for all.
template <int F, class T>
__device__ void over_grid(const T* v, const T* x, T* out, long long n, long long v_step, long long x_step) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        out[i] = T(evaluate<F>(double(v[i * v_step]), double(x[i * x_step])));
}

}  // namespace

#define KERNELS(name, F)                                                                                   \
    extern "C" __global__ void name##_f64(const double* v, const double* x, double* out, long long n,      \
                                          long long v_step, long long x_step) {                            \
        over_grid<F>(v, x, out, n, v_step, x_step);                                                        \
    }                                                                                                      \
    extern "C" __global__ void name##_f32(const float* v, const float* x, float* out, long long n,         \
                                          long long v_step, long long x_step) {                            \
        over_grid<F>(v, x, out, n, v_step, x_step);                                                        \
    }

KERNELS(log_iv, LOG_IV)
KERNELS(log_ive, LOG_IVE)
KERNELS(log_kv, LOG_KV)
KERNELS(log_kve, LOG_KVE)
KERNELS(iv_ratio, IV_RATIO)
KERNELS(iv_ratio_complement, IV_RATIO_COMPLEMENT)
KERNELS(kv_ratio, KV_RATIO)
KERNELS(log_kv_ratio, LOG_KV_RATIO)
KERNELS(dlog_iv_dv, DLOG_IV_DV)
KERNELS(dlog_kv_dv, DLOG_KV_DV)
KERNELS(log_iv_dx1, LOG_IV_DX1)
KERNELS(log_iv_dx2, LOG_IV_DX2)
KERNELS(log_iv_dx3, LOG_IV_DX3)
KERNELS(log_iv_dx4, LOG_IV_DX4)
KERNELS(log_kv_dx1, LOG_KV_DX1)
KERNELS(log_kv_dx2, LOG_KV_DX2)
KERNELS(log_kv_dx3, LOG_KV_DX3)
KERNELS(log_kv_dx4, LOG_KV_DX4)

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {AddressList} from "./AddressList.sol";
import {CodeStore} from "./CodeStore.sol";
import {MemberRegistry} from "./MemberRegistry.sol";
import {Quorum} from "./Quorum.sol";
import {TaskBoard} from "./TaskBoard.sol";

/// @title What was decided, round by round
/// @notice Keeps the first result of each round that a quorum of its epoch signed, chained to the one
/// before. A censored member commits and reveals here; a result that passes over it is then refused.
contract RoundManager is EIP712 {
    /// @notice The ciphertext of an update, bound before anybody sees anything.
    /// @param task The task.
    /// @param round The round, from 0.
    /// @param epoch The round's epoch.
    /// @param member Seat of the member that trained it.
    /// @param cid CID of the ciphertext, base32 text.
    /// @param keyHash SHA-256 of the 32-byte key.
    /// @param examples Training examples behind the update.
    /// @param exponents One signed byte per tensor: the lattice exponents that the update needs.
    struct Commitment {
        uint64 task;
        uint64 round;
        uint32 epoch;
        uint16 member;
        string cid;
        bytes32 keyHash;
        uint64 examples;
        bytes exponents;
    }

    /// @notice What a quorum signs.
    /// @param task The task.
    /// @param round The round, from 0.
    /// @param attempt The try of the round under one proposer.
    /// @param epoch The round's epoch.
    /// @param rule SHA-256 of the canonical rule name and parameters.
    /// @param previous Struct hash of the last result; in round 0 the specification's digest.
    /// @param manifest sha2-256 of the manifest, a dag-cbor block.
    /// @param model sha2-256 multihash digest of the new model's CID.
    /// @param scoresRoot Merkle root over (task, round, member, score) leaves, see verifyScore.
    /// @param scoresDigest keccak256 of the scores, uint16 big endian by seat.
    /// @param included Bitmap by seat.
    /// @param rejected Bitmap by seat; disjoint from included.
    struct RoundResult {
        uint64 task;
        uint64 round;
        uint32 attempt;
        uint32 epoch;
        bytes32 rule;
        bytes32 previous;
        bytes32 manifest;
        bytes32 model;
        bytes32 scoresRoot;
        bytes32 scoresDigest;
        uint256 included;
        uint256 rejected;
    }

    /// @dev One slot: round (8 bytes), openedAt (8), epoch (4). All zero until round 0 is finalized; until
    /// then round 0 is open since the task is.
    struct Opening {
        uint64 round;
        uint64 openedAt;
        uint32 epoch;
    }

    /// @dev Slot 0: committed. Slot 1: revealed. Bitmaps by seat. Then the hash of each member's key.
    struct Direct {
        uint256 committed;
        uint256 revealed;
        mapping(uint16 member => bytes32) keyHash;
    }

    /// @notice Longest CID, bytes of text.
    uint256 public constant MAX_CID = 128;
    /// @notice Most exponents, one byte per tensor.
    uint256 public constant MAX_EXPONENTS = 16_384;

    /// @notice EIP-712 type of a commitment.
    bytes32 public constant COMMITMENT_TYPEHASH = keccak256(
        "Commitment(uint64 task,uint64 round,uint32 epoch,uint16 member,string cid,bytes32 keyHash,uint64 examples,bytes exponents)"
    );
    /// @notice EIP-712 type of a result.
    bytes32 public constant RESULT_TYPEHASH = keccak256(
        "RoundResult(uint64 task,uint64 round,uint32 attempt,uint32 epoch,bytes32 rule,bytes32 previous,bytes32 manifest,bytes32 model,bytes32 scoresRoot,bytes32 scoresDigest,uint256 included,uint256 rejected)"
    );

    // Immutables are written like constants, as OpenZeppelin and forge lint have them.
    // slither-disable-start naming-convention
    /// @notice The members.
    MemberRegistry public immutable REGISTRY;
    /// @notice The tasks.
    TaskBoard public immutable BOARD;
    // slither-disable-end naming-convention

    /// @notice Struct hash of a round's result; zero until it is finalized.
    mapping(uint64 task => mapping(uint64 round => bytes32)) public resultHash;
    mapping(uint64 task => Opening) private _openings;
    mapping(uint64 task => mapping(uint64 round => Direct)) private _direct;

    /// @notice A quorum's result became the round's result; the next round is open from this block.
    event RoundFinalized(
        uint64 indexed task, uint64 indexed round, RoundResult result, uint256 signers, address submitter
    );
    /// @notice The scores that belong to the result, uint16 big endian by seat.
    event Scores(uint64 indexed task, uint64 indexed round, bytes scores);
    /// @notice A member's commitment stands on the chain; a result must include or reject the member.
    event DirectCommitment(
        uint64 indexed task,
        uint64 indexed round,
        uint16 indexed member,
        Commitment commitment,
        bytes32[2] signature
    );
    /// @notice The key of a commitment that stands on the chain.
    event DirectReveal(uint64 indexed task, uint64 indexed round, uint16 indexed member, bytes32 key);

    /// @notice The round already has a result.
    error RoundAlreadyFinalized(uint64 task, uint64 round);
    /// @notice The round has not begun; `open` is the one that has.
    error RoundNotOpen(uint64 task, uint64 round, uint64 open);
    /// @notice All rounds of the task have their result.
    error TaskComplete(uint64 task, uint64 rounds);
    /// @notice The round belongs to another epoch.
    error EpochMismatch(uint32 got, uint32 expected);
    /// @notice The result does not follow from the last one.
    error PreviousMismatch(bytes32 got, bytes32 expected);
    /// @notice Members both included and rejected.
    error OverlappingVerdicts(uint256 both);
    /// @notice Verdicts on seats that are not MEMBERs of the epoch.
    error VerdictOnStranger(uint256 strangers);
    /// @notice The member committed directly and the result passes over it.
    error CensoredCommitment(uint256 index);
    /// @notice The scores are not two bytes for each seat.
    error ScoresLengthMismatch(uint256 got, uint256 need);
    /// @notice The scores are not those that were signed.
    error ScoresDigestMismatch(bytes32 got, bytes32 expected);
    /// @notice Members without verdict may still commit or reveal until `notBefore`, Unix seconds.
    error TooEarly(uint256 notBefore);
    /// @notice The commit window closed at `end`, Unix seconds.
    error CommitWindowClosed(uint256 end);
    /// @notice The reveal window closed at `end`, Unix seconds.
    error RevealWindowClosed(uint256 end);
    /// @notice The seat is not a MEMBER's in the round's epoch.
    error NotAMemberSeat(uint16 index);
    /// @notice The member's signer did not sign this commitment.
    error BadCommitmentSignature(uint16 index);
    /// @notice The member already has a commitment on the chain in this round.
    error AlreadyCommitted(uint16 index);
    /// @notice The CID is empty or longer than MAX_CID.
    error MalformedCid(uint256 length);
    /// @notice More than MAX_EXPONENTS.
    error TooManyExponents(uint256 got);
    /// @notice The member has no commitment on the chain in this round.
    error NotCommitted(uint16 index);
    /// @notice The member's key is already on the chain.
    error AlreadyRevealed(uint16 index);
    /// @notice The key does not hash to the commitment's keyHash.
    error WrongKey(uint16 index, bytes32 got, bytes32 expected);
    /// @notice This is not the result that was finalized.
    error NotTheResult(bytes32 got, bytes32 expected);

    /// @param registry The members.
    /// @param board The tasks, governed by the same members.
    constructor(MemberRegistry registry, TaskBoard board) EIP712("Folkmoot", "1") {
        REGISTRY = registry;
        BOARD = board;
    }

    // The windows are long against the seconds by which a block's proposer may move its timestamp; the other
    // comparisons that these two detectors find are of round numbers, seats and bitmaps, and mean equality.
    // slither-disable-start timestamp,incorrect-equality
    /// @notice Make a quorum's result the result of the open round. Anyone may send it.
    /// @param r The result.
    /// @param signers Bitmap by seat of those who signed it.
    /// @param signatures EIP-2098 pairs; the k-th belongs to the k-th set bit of signers.
    /// @param scores uint16 big endian by seat of the epoch, empty seats included.
    function finalize(
        RoundResult calldata r,
        uint256 signers,
        bytes32[2][] calldata signatures,
        bytes calldata scores
    ) external {
        TaskBoard.Schedule memory schedule = _openSchedule(r.task);
        Opening memory open = _opening(r.task, schedule);
        _requireOpen(r.task, r.round, open, schedule);
        if (r.epoch != open.epoch) revert EpochMismatch(r.epoch, open.epoch);
        bytes32 previous = _previous(r.task, r.round);
        if (r.previous != previous) revert PreviousMismatch(r.previous, previous);

        MemberRegistry.Epoch memory epoch = REGISTRY.epochAt(open.epoch);
        _requireVerdicts(r, epoch.active);
        _requireScores(r, scores, epoch.size);
        if (r.included | r.rejected != epoch.active) {
            uint256 notBefore = _revealEnd(open, schedule);
            if (block.timestamp < notBefore) revert TooEarly(notBefore);
        }
        bytes32 structHash = hashResult(r);
        Quorum.check(
            _hashTypedDataV4(structHash),
            CodeStore.read(epoch.signers),
            signers,
            signatures,
            Quorum.required(epoch.members)
        );

        resultHash[r.task][r.round] = structHash;
        _openings[r.task] = Opening(r.round + 1, uint64(block.timestamp), REGISTRY.epoch());
        emit RoundFinalized(r.task, r.round, r, signers, msg.sender);
        emit Scores(r.task, r.round, scores);
    }

    /// @notice Put a member's commitment on the chain. Anyone may send it, in the open round's commit
    /// window; the result must then include or reject the member.
    /// @param c The commitment.
    /// @param signature EIP-2098 signature of digestCommitment(c) by the signer of seat c.member.
    function commitDirect(Commitment calldata c, bytes32[2] calldata signature) external {
        TaskBoard.Schedule memory schedule = _openSchedule(c.task);
        Opening memory open = _opening(c.task, schedule);
        _requireOpen(c.task, c.round, open, schedule);
        if (c.epoch != open.epoch) revert EpochMismatch(c.epoch, open.epoch);
        uint256 end = uint256(open.openedAt) + schedule.commitWindow;
        if (block.timestamp >= end) revert CommitWindowClosed(end);
        uint256 length = bytes(c.cid).length;
        if (length == 0 || length > MAX_CID) revert MalformedCid(length);
        if (c.exponents.length > MAX_EXPONENTS) revert TooManyExponents(c.exponents.length);

        Direct storage direct = _direct[c.task][c.round];
        MemberRegistry.Epoch memory epoch = REGISTRY.epochAt(open.epoch);
        if (epoch.active & (1 << c.member) == 0) revert NotAMemberSeat(c.member);
        if (direct.committed & (1 << c.member) != 0) revert AlreadyCommitted(c.member);
        address signer = AddressList.entryAt(CodeStore.read(epoch.signers), c.member);
        if (!Quorum.isSigner(digestCommitment(c), signer, signature)) {
            revert BadCommitmentSignature(c.member);
        }
        direct.committed |= 1 << c.member;
        direct.keyHash[c.member] = c.keyHash;
        emit DirectCommitment(c.task, c.round, c.member, c, signature);
    }

    /// @notice Put the key of a direct commitment on the chain. Anyone who knows it may, until the open
    /// round's reveal window closes.
    /// @param key The 32 bytes whose SHA-256 is the commitment's keyHash.
    function revealDirect(uint64 task, uint64 round, uint16 member, bytes32 key) external {
        TaskBoard.Schedule memory schedule = _openSchedule(task);
        Opening memory open = _opening(task, schedule);
        _requireOpen(task, round, open, schedule);
        uint256 end = _revealEnd(open, schedule);
        if (block.timestamp >= end) revert RevealWindowClosed(end);
        Direct storage direct = _direct[task][round];
        if (direct.committed & (1 << member) == 0) revert NotCommitted(member);
        if (direct.revealed & (1 << member) != 0) revert AlreadyRevealed(member);
        bytes32 got = sha256(abi.encodePacked(key));
        bytes32 expected = direct.keyHash[member];
        if (got != expected) revert WrongKey(member, got, expected);
        direct.revealed |= 1 << member;
        emit DirectReveal(task, round, member, key);
    }

    /// @notice The open round of a task.
    /// @return round The round, from 0; equal to the task's number of rounds when it is complete.
    /// @return epoch The epoch whose signers finalize it.
    /// @return openedAt Timestamp of the block that opened it.
    /// @return previous Struct hash of the last result; in round 0 the specification's digest.
    /// @return direct Bitmap of members that committed directly.
    function roundState(uint64 task)
        external
        view
        returns (uint64 round, uint32 epoch, uint64 openedAt, bytes32 previous, uint256 direct)
    {
        Opening memory open = _opening(task, BOARD.scheduleOf(task));
        return (
            open.round,
            open.epoch,
            open.openedAt,
            _previous(task, open.round),
            _direct[task][open.round].committed
        );
    }

    /// @notice Members that committed and revealed directly in a round.
    /// @return committed Bitmap by seat.
    /// @return revealed Bitmap by seat.
    function directOf(uint64 task, uint64 round) external view returns (uint256 committed, uint256 revealed) {
        Direct storage direct = _direct[task][round];
        return (direct.committed, direct.revealed);
    }

    /// @notice Whether a score belongs to a finalized result.
    /// @param r The result; reverts NotTheResult when it is not the one that was finalized.
    /// @param index The seat.
    /// @param score Its score.
    /// @param proof OpenZeppelin Merkle proof of the leaf
    /// keccak256(bytes.concat(keccak256(abi.encode(task, round, index, score)))) under r.scoresRoot.
    function verifyScore(RoundResult calldata r, uint16 index, uint16 score, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        bytes32 got = hashResult(r);
        bytes32 expected = resultHash[r.task][r.round];
        if (got != expected) revert NotTheResult(got, expected);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(r.task, r.round, index, score))));
        return MerkleProof.verifyCalldata(proof, r.scoresRoot, leaf);
    }

    /// @notice EIP-712 struct hash of a result: what the next one names as its predecessor.
    function hashResult(RoundResult calldata r) public pure returns (bytes32) {
        return keccak256(abi.encode(RESULT_TYPEHASH, r));
    }

    /// @notice EIP-712 digest of a result: what a member signs.
    function digestResult(RoundResult calldata r) external view returns (bytes32) {
        return _hashTypedDataV4(hashResult(r));
    }

    /// @notice EIP-712 struct hash of a commitment.
    function hashCommitment(Commitment calldata c) public pure returns (bytes32) {
        return keccak256(
            abi.encode(
                COMMITMENT_TYPEHASH,
                c.task,
                c.round,
                c.epoch,
                c.member,
                keccak256(bytes(c.cid)),
                c.keyHash,
                c.examples,
                keccak256(c.exponents)
            )
        );
    }

    /// @notice EIP-712 digest of a commitment: what a member signs.
    function digestCommitment(Commitment calldata c) public view returns (bytes32) {
        return _hashTypedDataV4(hashCommitment(c));
    }

    function _openSchedule(uint64 task) private view returns (TaskBoard.Schedule memory schedule) {
        schedule = BOARD.scheduleOf(task);
        if (schedule.status != TaskBoard.Status.OPEN) revert TaskBoard.TaskNotOpen(task);
    }

    function _opening(uint64 task, TaskBoard.Schedule memory schedule)
        private
        view
        returns (Opening memory open)
    {
        open = _openings[task];
        if (open.openedAt == 0) open = Opening(0, schedule.openedAt, schedule.epoch);
    }

    function _requireOpen(uint64 task, uint64 round, Opening memory open, TaskBoard.Schedule memory schedule)
        private
        pure
    {
        if (round < open.round) revert RoundAlreadyFinalized(task, round);
        if (open.round >= schedule.rounds) revert TaskComplete(task, schedule.rounds);
        if (round > open.round) revert RoundNotOpen(task, round, open.round);
    }

    function _requireVerdicts(RoundResult calldata r, uint256 active) private view {
        uint256 both = r.included & r.rejected;
        if (both != 0) revert OverlappingVerdicts(both);
        uint256 covered = r.included | r.rejected;
        uint256 strangers = covered & ~active;
        if (strangers != 0) revert VerdictOnStranger(strangers);
        uint256 censored = _direct[r.task][r.round].committed & ~covered;
        if (censored != 0) revert CensoredCommitment(Quorum.lowest(censored));
    }

    function _requireScores(RoundResult calldata r, bytes calldata scores, uint256 size) private pure {
        if (scores.length != 2 * size) revert ScoresLengthMismatch(scores.length, 2 * size);
        bytes32 got = keccak256(scores);
        if (got != r.scoresDigest) revert ScoresDigestMismatch(got, r.scoresDigest);
    }

    function _previous(uint64 task, uint64 round) private view returns (bytes32) {
        return round == 0 ? BOARD.specificationOf(task) : resultHash[task][round - 1];
    }

    function _revealEnd(Opening memory open, TaskBoard.Schedule memory schedule)
        private
        pure
        returns (uint256)
    {
        return uint256(open.openedAt) + schedule.commitWindow + schedule.revealWindow;
    }
    // slither-disable-end timestamp,incorrect-equality
}
